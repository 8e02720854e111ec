# The CUDA kernels. CALIBATT_CUDA: AUTO (where nvcc is found), ON, OFF.
set(CALIBATT_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO (when nvcc is found), ON or OFF")
set_property(CACHE CALIBATT_CUDA PROPERTY STRINGS AUTO ON OFF)

set(CALIBATT_HAVE_CUDA OFF)
if(CALIBATT_CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    find_program(CALIBATT_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
    if(CALIBATT_NVCC)
      set(CMAKE_CUDA_COMPILER ${CALIBATT_NVCC})
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER)
    set(CALIBATT_HAVE_CUDA ON)
  elseif(NOT CALIBATT_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "CALIBATT_CUDA is ${CALIBATT_CUDA}, but there is no nvcc in PATH, CUDA_HOME or /usr/local/cuda/bin. "
      "Install CUDA 13, name the compiler with -DCMAKE_CUDA_COMPILER=…, or configure with -DCALIBATT_CUDA=OFF.")
  endif()
endif()
if(CALIBATT_HAVE_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES 80)  # for CMake's own check of the compiler; every target below names its own
  if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
  endif()
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 13 has C++20
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  find_package(CUDAToolkit REQUIRED)
endif()
message(STATUS "CUDA kernels: ${CALIBATT_HAVE_CUDA}")
add_custom_target(cuda_tests)  # what tools/test.sh builds of the preset `cuda`

# calibatt_cuda_kernels(library name ARCHITECTURES list [OPTIONS flags...] FILES globs...): adds the .cu files to the library, compiled
# for these architectures. (CMake knows architectures per target, not per file, hence the object library <library>_<name>.)
function(calibatt_cuda_kernels library name)
  cmake_parse_arguments(ARG "" "" "ARCHITECTURES;OPTIONS;FILES" ${ARGN})
  list(TRANSFORM ARG_FILES PREPEND ${PROJECT_SOURCE_DIR}/src/backend/cuda/)
  file(GLOB kernels CONFIGURE_DEPENDS ${ARG_FILES})
  if(NOT kernels)
    return()
  endif()
  add_library(${library}_${name} OBJECT ${kernels})
  set_target_properties(${library}_${name} PROPERTIES CUDA_ARCHITECTURES "${ARG_ARCHITECTURES}")
  target_compile_options(${library}_${name} PRIVATE --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra,-Wno-psabi,-Wno-missing-field-initializers ${ARG_OPTIONS})
  target_link_libraries(${library}_${name} PRIVATE calibatt_options)
  target_sources(${library} PRIVATE $<TARGET_OBJECTS:${library}_${name}>)
endfunction()

# The floor `cuda`: all of src/backend/cuda where there is a compiler for it; else the host code that needs none, with its tests.
function(calibatt_cuda_library dir)
  if(CALIBATT_HAVE_CUDA)
    calibatt_library(cuda ${dir} RECURSE DEPENDS backend LINK CUDA::cudart_static)
    target_compile_definitions(calibatt_cuda PUBLIC CALIBATT_HAVE_CUDA)
    # Binaries for Ampere and Hopper, and PTX for what comes after.
    calibatt_cuda_kernels(calibatt_cuda portable ARCHITECTURES 80-real 80-virtual 90-real
      FILES attention/sm80/*.cu attention/generic/*.cu attention/*.cu)
    # Hopper's own instructions exist in its binaries alone. (A flag, because CMake 3.25 does not know the name 90a.)
    calibatt_cuda_kernels(calibatt_cuda hopper ARCHITECTURES OFF OPTIONS -gencode=arch=compute_90a,code=sm_90a
      FILES attention/sm90/*.cu)
  else()
    calibatt_library(cuda ${dir} RECURSE ONLY "/(packed_schedule|schedule_stream)(_test)?\\.cpp$" DEPENDS backend)
  endif()
  if(TARGET calibatt_cuda_test)
    add_dependencies(cuda_tests calibatt_cuda_test)
  endif()
endfunction()
