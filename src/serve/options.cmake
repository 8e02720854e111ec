# The page is part of the program: `kServePage` (page.h).
calibatt_embed_file(calibatt_serve src/serve/page.html kServePage)
