# Flags of single files of this floor.
set_source_files_properties(${PROJECT_SOURCE_DIR}/src/backend/cpu/attention/simd/attention_f32.cpp PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag("-mavx512bf16" CALIBATT_COMPILER_HAS_AVX512BF16)
if(CALIBATT_COMPILER_HAS_AVX512BF16)
  # What Highway's AVX3 needs, and the BF16 dot product; entered only behind a CPUID check.
  set_source_files_properties(${PROJECT_SOURCE_DIR}/src/backend/cpu/attention/simd/attention_bf16.cpp PROPERTIES SKIP_PRECOMPILE_HEADERS ON COMPILE_OPTIONS
    "-mavx512f;-mavx512vl;-mavx512dq;-mavx512bw;-mavx512cd;-mavx512bf16;-mavx2;-mfma;-mf16c;-mbmi;-mbmi2;-mlzcnt;-mpclmul;-maes")
  set_source_files_properties(${PROJECT_SOURCE_DIR}/src/backend/cpu/attention/simd/attention_simd.cpp PROPERTIES COMPILE_DEFINITIONS
    CALIBATT_HAVE_AVX512_BF16)
endif()
