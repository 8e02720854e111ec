# Highway compiles each of these several times, for one set of instructions after the other, and so each needs a translation unit of its own.
set_source_files_properties(${PROJECT_SOURCE_DIR}/src/backend/cpu/clip_kernels.cpp ${PROJECT_SOURCE_DIR}/src/backend/cpu/row_kernels.cpp
  PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
