# cmake -DINPUT=… -DOUTPUT=… -DNAME=… -P embed_file.cmake: what calibatt_embed_file runs at build time.
file(READ "${INPUT}" content)
string(FIND "${content}" ")calibatt_embed\"" end)
if(NOT end EQUAL -1)
  message(FATAL_ERROR "${INPUT}: holds )calibatt_embed\", which ends the C++ string that it is to become")
endif()
file(WRITE "${OUTPUT}" "// Made from ${INPUT}.\n#include <string_view>\n\nnamespace calibatt {\n\nextern const std::string_view ${NAME};\n"
  "constexpr std::string_view ${NAME} = R\"calibatt_embed(${content})calibatt_embed\";\n\n}  // namespace calibatt\n")
