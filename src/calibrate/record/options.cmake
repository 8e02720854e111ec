# Highway compiles it several times, for one set of instructions after the other, and so it needs a translation unit of its own.
set_source_files_properties(${PROJECT_SOURCE_DIR}/src/calibrate/record/sampled_attention.cpp PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
