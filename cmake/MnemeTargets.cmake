# SPDX-License-Identifier: Apache-2.0
# Small helpers that give every target the same language level, warnings and include root.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

# Where Debian looks for libraries under any prefix. GNUInstallDirs would choose this for /usr alone, and one build serves
# both a package and a local installation.
if(CMAKE_LIBRARY_ARCHITECTURE)
  set(CMAKE_INSTALL_LIBDIR "lib/${CMAKE_LIBRARY_ARCHITECTURE}" CACHE PATH "Libraries, below the prefix")
endif()
include(GNUInstallDirs)

set(MNEME_SANITIZE "" CACHE STRING "Sanitizers for -fsanitize=, e.g. address,undefined or thread")
if(MNEME_SANITIZE)
  add_compile_options(-fsanitize=${MNEME_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${MNEME_SANITIZE})
endif()

# Kernels want a compiler that unrolls and keeps their sums in registers; at -O2, which distributions and RelWithDebInfo
# take, GCC leaves them in memory and the scan takes twice as long.
set(MNEME_KERNEL_OPTIONS "$<$<NOT:$<CONFIG:Debug>>:-O3>")

# The repository's root is a quote-only include root: "memory/store.h" is found, and <memory> stays the
# standard library's.
function(mneme_target_defaults target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:C,CXX>:SHELL:-iquote ${PROJECT_SOURCE_DIR}>"
    "$<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Werror;-ffp-contract=off>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-iquote${PROJECT_SOURCE_DIR},-Wall,-Wextra,-Werror,-ffp-contract=off>")
endfunction()

# Programs around the engine and tests take long to compile and no time to run: released ones are optimised a little.
function(mneme_compile_quickly target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
endfunction()

# mneme_add_library(NAME source...): the static library mneme_NAME of one folder.
function(mneme_add_library name)
  add_library(mneme_${name} STATIC ${ARGN})
  mneme_target_defaults(mneme_${name})
endfunction()

# mneme_add_test_suite(FOLDER SOURCES file... LINK library... [PROPERTIES name value...]): one GoogleTest program for a
# folder's tests. PROPERTIES: of each of its tests.
function(mneme_add_test_suite folder)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK;PROPERTIES" ${ARGN})
  add_executable(${folder}_tests ${ARG_SOURCES})
  mneme_target_defaults(${folder}_tests)
  mneme_compile_quickly(${folder}_tests)
  target_link_libraries(${folder}_tests PRIVATE ${ARG_LINK} GTest::gmock GTest::gtest_main)
  gtest_discover_tests(${folder}_tests TEST_PREFIX "${folder}/" DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS ${folder} TIMEOUT 300 ${ARG_PROPERTIES})
  foreach(source IN LISTS ARG_SOURCES)
    set_property(GLOBAL APPEND PROPERTY MNEME_TEST_SOURCES "${CMAKE_CURRENT_SOURCE_DIR}/${source}")
  endforeach()
endfunction()
