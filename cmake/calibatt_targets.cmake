# What the attention alone needs, then what the whole does beside it.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(nlohmann_json REQUIRED)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)  # its CMake file came after version 0.16 (Ubuntu 22.04)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
if(CALIBATT_PARTS STREQUAL "all")
  find_package(dnnl REQUIRED)
  find_package(CLI11 REQUIRED)
  pkg_check_modules(FFMPEG REQUIRED IMPORTED_TARGET libavcodec libavformat libavutil libswscale)
  pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
  pkg_check_modules(HTTPLIB REQUIRED IMPORTED_TARGET cpp-httplib)  # with its flags: they change the layout of its classes
endif()
if(CALIBATT_TESTS STREQUAL "AUTO")  # the program needs no GoogleTest; `make test` sees to it and says ON
  find_package(GTest QUIET)
  set(CALIBATT_TESTS ${GTest_FOUND})
endif()
if(CALIBATT_TESTS)
  find_package(GTest REQUIRED)
  include(GoogleTest)
  add_custom_target(unit_tests)  # the *_test binaries of all floors: what runs under the sanitizers
endif()

# What every source is compiled with. It names no folder of headers: those come from the floors.
add_library(calibatt_options INTERFACE)
target_compile_options(calibatt_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wno-psabi>;$<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>")
target_compile_definitions(calibatt_options INTERFACE CALIBATT_VERSION="${PROJECT_VERSION}")
target_link_libraries(calibatt_options INTERFACE Threads::Threads)
target_link_options(calibatt_options INTERFACE LINKER:--as-needed)  # a binary asks at run time for what it uses, no more
if(CALIBATT_SANITIZE)
  target_compile_options(calibatt_options INTERFACE -fsanitize=${CALIBATT_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  # GCC 12 says it of std::regex with sanitizers.
  target_compile_options(calibatt_options INTERFACE "$<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized>")
  # And that a class of a .cpp, which is included here (calibatt_unity), has members of an unnamed namespace.
  target_compile_options(calibatt_options INTERFACE "$<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-subobject-linkage>")
  target_link_options(calibatt_options INTERFACE -fsanitize=${CALIBATT_SANITIZE})
endif()

# Headers of the standard library that most sources include, compiled once: that saves a quarter of what a source takes to compile. Each
# source includes what it uses all the same. What lacks shows where there are none of these: in clang-tidy over a changed source and, of tests
# too, in the build for ThreadSanitizer. Nor has them a build with ccache, which keeps no object that was made with them, or the wheel's, which
# includes a header of its own before all others.
if(CMAKE_CXX_COMPILER_LAUNCHER OR CALIBATT_PARTS STREQUAL "attention")
  set(CMAKE_DISABLE_PRECOMPILE_HEADERS ON)
endif()
if(NOT CMAKE_DISABLE_PRECOMPILE_HEADERS)  # GCC 12 warns of its own std::string where that came precompiled
  target_compile_options(calibatt_options INTERFACE "$<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-array-bounds;-Wno-stringop-overflow>")
endif()
file(GENERATE OUTPUT ${PROJECT_BINARY_DIR}/embedded/precompiled.cpp CONTENT "// Headers alone.\n")
add_library(calibatt_precompiled OBJECT ${PROJECT_BINARY_DIR}/embedded/precompiled.cpp)
target_link_libraries(calibatt_precompiled PRIVATE calibatt_options)
set(headers <algorithm> <cmath> <filesystem> <functional> <map> <memory> <optional> <span> <string> <vector>)
target_precompile_headers(calibatt_precompiled PRIVATE ${headers})

# What every test of GoogleTest is compiled and linked with. The most that a test costs is its compilation: -O3 takes half as long again as -O1,
# and with sanitizers -O1 twice as long as -O0. (Conformance tests compute references, and stay at -O3.)
if(CALIBATT_TESTS)
  add_library(calibatt_tests INTERFACE)
  if(CALIBATT_SANITIZE)
    target_compile_options(calibatt_tests INTERFACE -O0)
  else()
    target_compile_options(calibatt_tests INTERFACE $<$<CONFIG:Release>:-O1>)
  endif()
  target_link_libraries(calibatt_tests INTERFACE GTest::gtest_main GTest::gmock)
  file(GENERATE OUTPUT ${PROJECT_BINARY_DIR}/embedded/precompiled_tests.cpp CONTENT "int main() { return 0; }\n")
  add_executable(calibatt_precompiled_tests ${PROJECT_BINARY_DIR}/embedded/precompiled_tests.cpp)  # a program, for -fPIE is a setting of GCC's that counts
  target_link_libraries(calibatt_precompiled_tests PRIVATE calibatt_options calibatt_tests)
  target_precompile_headers(calibatt_precompiled_tests PRIVATE ${headers} <gmock/gmock.h> <gtest/gtest.h>)
endif()

# calibatt_test(target sources... LINK targets...): a program of tests.
function(calibatt_test target)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  add_executable(${target} ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(${target} PRIVATE ${ARG_LINK} calibatt_tests)
  target_precompile_headers(${target} REUSE_FROM calibatt_precompiled_tests)
  calibatt_unity(${target} ${ARG_UNPARSED_ARGUMENTS})
endfunction()

# calibatt_discover_tests(target prefix labels): each test is a test of ctest's. Under sanitizers the whole program is one: what its tests share
# (a measured profile) is made once there, not for each. It names each test as it begins, for a sanitizer ends it in the middle of one.
function(calibatt_discover_tests target prefix labels)
  if(CALIBATT_SANITIZE)
    add_test(NAME ${target} COMMAND ${target})
    set_tests_properties(${target} PROPERTIES LABELS "${labels}" TIMEOUT 3600)
  else()
    gtest_discover_tests(${target} TEST_PREFIX "${prefix}." PROPERTIES LABELS "${labels}" DISCOVERY_TIMEOUT 60)
  endif()
endfunction()

# calibatt_unity(target sources...): where a preset says CMAKE_UNITY_BUILD (the sanitizers' and clang-tidy's), the sources of one folder are one
# translation unit: most of what a source costs there is the headers that all of them include. Hence no two sources of a folder may have the
# same name in their unnamed namespaces.
function(calibatt_unity target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD_MODE GROUP)
  foreach(source IN LISTS ARGN)
    get_filename_component(path ${source} ABSOLUTE)
    get_filename_component(folder ${path} DIRECTORY)
    file(RELATIVE_PATH folder ${PROJECT_SOURCE_DIR} ${folder})
    string(MAKE_C_IDENTIFIER "${folder}" group)
    set_source_files_properties(${source} PROPERTIES UNITY_GROUP ${group})
  endforeach()
endfunction()

# calibatt_floor_headers(name dir nested): the folder build/…/floors/<name>, through which a target sees the headers of this floor, and of no
# other: links to the sources, so that `#include "io/x.h"` finds io/ only where the floor io is linked. `nested`: subfolders that are floors
# of their own.
function(calibatt_floor_headers name dir nested)
  set(tree ${PROJECT_BINARY_DIR}/floors/${name})
  string(REGEX REPLACE "^src/" "" folder ${dir})
  file(REMOVE_RECURSE ${tree})
  if(NOT nested)
    get_filename_component(parent ${tree}/${folder} DIRECTORY)
    file(MAKE_DIRECTORY ${parent})
    file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${dir} ${tree}/${folder} SYMBOLIC)
    return()
  endif()
  file(MAKE_DIRECTORY ${tree}/${folder})
  file(GLOB entries CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/${dir} ${PROJECT_SOURCE_DIR}/${dir}/*)
  list(REMOVE_ITEM entries ${nested})
  foreach(entry IN LISTS entries)
    file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${dir}/${entry} ${tree}/${folder}/${entry} SYMBOLIC)
  endforeach()
endfunction()

# calibatt_library(name dir [RECURSE] [NESTED subfolders...] [ONLY regex] [DEPENDS floors...] [LINK targets...]
# [TEST_DEPENDS floors...]): the library calibatt_<name> of all sources in the folder, and calibatt_<name>_test of the
# *_test.cpp beside them, which may use more floors. A floor without sources yet is header-only. NESTED: subfolders that are
# floors of their own. ONLY selects among the sources by their paths.
function(calibatt_library name dir)
  cmake_parse_arguments(ARG "RECURSE" "ONLY" "NESTED;DEPENDS;LINK;TEST_DEPENDS" ${ARGN})
  if(ARG_RECURSE)
    file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${dir}/*.cpp)
  else()
    file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${dir}/*.cpp)
  endif()
  foreach(folder IN LISTS ARG_NESTED)
    list(FILTER sources EXCLUDE REGEX "^${PROJECT_SOURCE_DIR}/${dir}/${folder}/")
  endforeach()
  if(ARG_ONLY)
    list(FILTER sources INCLUDE REGEX "${ARG_ONLY}")
  endif()
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "_test\\.cpp$")
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
  set(dependencies ${ARG_DEPENDS})
  set(test_dependencies ${ARG_TEST_DEPENDS})
  list(TRANSFORM dependencies PREPEND calibatt_)
  list(TRANSFORM test_dependencies PREPEND calibatt_)
  set(scope INTERFACE)
  if(sources)
    set(scope PUBLIC)
    add_library(calibatt_${name} STATIC ${sources})
    target_precompile_headers(calibatt_${name} REUSE_FROM calibatt_precompiled)
    calibatt_unity(calibatt_${name} ${sources})
  else()
    add_library(calibatt_${name} INTERFACE)
  endif()
  calibatt_floor_headers(${name} ${dir} "${ARG_NESTED}")
  target_include_directories(calibatt_${name} ${scope} ${PROJECT_BINARY_DIR}/floors/${name} ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(calibatt_${name} ${scope} calibatt_options ${dependencies} ${ARG_LINK})
  set_target_properties(calibatt_${name} PROPERTIES CALIBATT_DEPENDS "${ARG_DEPENDS}" CALIBATT_LINK "${ARG_LINK}" CALIBATT_OBJECTS "")
  if(EXISTS ${PROJECT_SOURCE_DIR}/${dir}/options.cmake)
    include(${PROJECT_SOURCE_DIR}/${dir}/options.cmake)  # per-file compile flags of this floor
  endif()
  if(CALIBATT_TESTS AND tests)
    calibatt_test(calibatt_${name}_test ${tests} LINK calibatt_${name} ${test_dependencies})
    target_compile_definitions(calibatt_${name}_test PRIVATE CALIBATT_GOLDEN_DIR="${PROJECT_SOURCE_DIR}/tests/golden/data"
      CALIBATT_MODELS_DIR="${PROJECT_SOURCE_DIR}/models")
    add_dependencies(unit_tests calibatt_${name}_test)
    calibatt_discover_tests(calibatt_${name}_test ${name} unit)
  endif()
endfunction()

# calibatt_embed_file(target file name): the text file becomes `calibatt::<name>` in the target, for which a header of the target says
# `extern const std::string_view <name>;`. A floor calls it in its options.cmake.
function(calibatt_embed_file target file name)
  get_filename_component(input ${file} ABSOLUTE BASE_DIR ${PROJECT_SOURCE_DIR})
  set(output ${PROJECT_BINARY_DIR}/embedded/${name}.cpp)
  set(script ${PROJECT_SOURCE_DIR}/cmake/embed_file.cmake)
  add_custom_command(OUTPUT ${output} COMMAND ${CMAKE_COMMAND} -DINPUT=${input} -DOUTPUT=${output} -DNAME=${name} -P ${script}
    DEPENDS ${input} ${script} VERBATIM)
  target_sources(${target} PRIVATE ${output})
endfunction()

# calibatt_shared_library(target floors...): the library of these floors, with all they stand on. It is one shared library because a
# program needs one file, whatever it is written in, and because only a shared library can hide what is not declared in include/ (and with it
# the libraries that we use). Tests link the floors themselves, which are static, and so reach what is hidden.
function(calibatt_shared_library target)
  set(objects "")
  set(links "")
  set(todo ${ARGN})
  set(seen "")
  while(todo)
    list(POP_FRONT todo name)
    if(name IN_LIST seen)
      continue()
    endif()
    list(APPEND seen ${name})
    get_target_property(kind calibatt_${name} TYPE)
    if(kind STREQUAL "STATIC_LIBRARY")
      list(APPEND objects $<TARGET_OBJECTS:calibatt_${name}>)
    endif()
    get_target_property(more calibatt_${name} CALIBATT_OBJECTS)
    list(APPEND objects ${more})
    get_target_property(more calibatt_${name} CALIBATT_LINK)
    list(APPEND links ${more})
    get_target_property(more calibatt_${name} CALIBATT_DEPENDS)
    list(APPEND todo ${more})
  endwhile()
  list(REMOVE_DUPLICATES links)
  add_library(${target} SHARED ${objects})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME calibatt EXPORT_NAME calibatt LINKER_LANGUAGE CXX)
  # Installed, it finds what lies in no folder of the system's (cuDNN, by CUDNN_ROOT) where it was linked.
  set_target_properties(${target} PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
  target_compile_features(${target} INTERFACE cxx_std_20)
  target_include_directories(${target} INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:calibatt_options> ${links})
  target_link_options(${target} PRIVATE LINKER:--exclude-libs,libcudart_static.a
    LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/libcalibatt.map)
  set_target_properties(${target} PROPERTIES LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/libcalibatt.map)
endfunction()

# calibatt_cli(dir floors...): the program, on the shared library and on floors that stand on it.
function(calibatt_cli dir)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${dir}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "_test\\.cpp$")
  add_executable(calibatt ${sources})
  calibatt_unity(calibatt ${sources})
  target_compile_options(calibatt PRIVATE $<$<CONFIG:Release>:-O1>)  # it reads flags and prints; -O3 would take half as long again
  list(TRANSFORM ARGN PREPEND calibatt_ OUTPUT_VARIABLE floors)
  target_link_libraries(calibatt PRIVATE calibatt_options ${floors} libcalibatt CLI11::CLI11)
  set_target_properties(calibatt PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
  if(CALIBATT_HAVE_CUDA)
    add_dependencies(cuda_tests calibatt)
  endif()
endfunction()

# The library that a wheel holds (pyproject.toml): one file beside the Python code that loads it.
function(calibatt_wheel_library target)
  calibatt_shared_library(${target} capi)
  target_link_options(${target} PRIVATE LINKER:--no-undefined)  # what it lacks shows here, not where it is loaded
endfunction()

function(calibatt_install_wheel)
  # GCC 12 gave condition_variable::wait a new version, for which alone the library would not load on Ubuntu 22.04 and its like.
  target_compile_options(calibatt_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include ${PROJECT_SOURCE_DIR}/cmake/older_libstdcxx.h>")
  install(TARGETS libcalibatt LIBRARY DESTINATION calibatt COMPONENT wheel)
endfunction()

# `cmake --install`: the program, the library, its public headers, and what find_package(calibatt) reads.
function(calibatt_install)
  set_target_properties(libcalibatt PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
  set(package ${CMAKE_INSTALL_LIBDIR}/cmake/calibatt)
  install(TARGETS calibatt RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(TARGETS libcalibatt EXPORT calibatt_targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/calibatt DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
  install(EXPORT calibatt_targets NAMESPACE calibatt:: FILE calibattConfig.cmake DESTINATION ${package})
  include(CMakePackageConfigHelpers)
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/calibattConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/calibattConfigVersion.cmake DESTINATION ${package})
endfunction()
