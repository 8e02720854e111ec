// Compiled by the tests floors.*: with the headers of `io` it compiles, with those of `base` it must not.
#include "base/error.h"
#include "io/mapped_file.h"
