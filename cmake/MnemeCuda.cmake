# SPDX-License-Identifier: Apache-2.0
# Whether the CUDA kernels are built: ON wherever an nvcc is found that can compile them (12.0 or newer), and no sanitizer
# is asked for. Nothing else of mneme depends on it.
find_program(MNEME_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin
  PATHS /usr/local/cuda/bin /opt/cuda/bin DOC "The CUDA compiler")
set(mneme_nvcc_version 0)
if(MNEME_NVCC)
  execute_process(COMMAND "${MNEME_NVCC}" --version OUTPUT_VARIABLE mneme_nvcc_says ERROR_QUIET)
  if(mneme_nvcc_says MATCHES "release ([0-9]+\\.[0-9]+)")
    set(mneme_nvcc_version "${CMAKE_MATCH_1}")
  endif()
endif()
if(mneme_nvcc_version VERSION_GREATER_EQUAL 12.0 AND NOT MNEME_SANITIZE)
  set(mneme_cuda_default ON)
else()
  set(mneme_cuda_default OFF)
endif()
option(MNEME_CUDA "Build the CUDA kernels" ${mneme_cuda_default})

if(MNEME_CUDA)
  if(mneme_nvcc_version VERSION_LESS 12.0)
    message(FATAL_ERROR "MNEME_CUDA=ON: expected nvcc 12.0 or newer, found ${MNEME_NVCC} (${mneme_nvcc_version}); "
      "set MNEME_NVCC")
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER "${MNEME_NVCC}")
  endif()
  # What the compilers are tried with; the kernels' own list is below. No library is wanted but the static runtime, which
  # asks for a driver only when it is called.
  set(CMAKE_CUDA_ARCHITECTURES 80)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has C++20
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  set(mneme_cuda_code
    "SHELL:-gencode arch=compute_80,code=[sm_80,compute_80]" "SHELL:-gencode arch=compute_90a,code=sm_90a")
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND mneme_cuda_code "SHELL:-gencode arch=compute_100a,code=sm_100a")
  endif()
endif()
message(STATUS "CUDA kernels: ${MNEME_CUDA} (nvcc ${mneme_nvcc_version})")

# Machine code for A100, H100 and H200, B200, and portable code for what lies between and after.
function(mneme_target_cuda target)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES OFF)
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${mneme_cuda_code};-Werror=all-warnings>")
endfunction()
