# SPDX-License-Identifier: Apache-2.0
# FAISS: Debian's libfaiss-dev, or a newer one given by -Dfaiss_DIR / CMAKE_PREFIX_PATH. Gives the target mneme_faiss,
# MNEME_FAISS_VERSION and MNEME_FAISS_HAS_GPU. FAISS needs OpenMP and a BLAS; it is linked statically where it is a static
# library, and its symbols stay inside libmneme.
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(BLAS REQUIRED)
find_package(LAPACK REQUIRED)
# A FAISS with GPU support names the toolkit's libraries and leaves finding them to others.
find_package(CUDAToolkit QUIET)
find_package(faiss REQUIRED)
set(MNEME_FAISS_VERSION "${faiss_VERSION}")
set(mneme_faiss_links faiss OpenMP::OpenMP_CXX LAPACK::LAPACK BLAS::BLAS)
add_library(mneme_faiss INTERFACE)
target_link_libraries(mneme_faiss INTERFACE ${mneme_faiss_links})

# The gpu kinds: wherever the FAISS found has GPU indices (it was built with FAISS_ENABLE_GPU, and its headers are there) and
# what calls them links. Nothing else depends on it, and nothing of it is compiled by nvcc.
set(MNEME_FAISS_GPU AUTO CACHE STRING "FAISS's GPU indices: AUTO (where the FAISS found has them), ON or OFF")
set_property(CACHE MNEME_FAISS_GPU PROPERTY STRINGS AUTO ON OFF)
set(MNEME_FAISS_HAS_GPU OFF)
set(mneme_faiss_gpu_lacks "")
if(MNEME_FAISS_GPU STREQUAL "AUTO" OR MNEME_FAISS_GPU)
  get_target_property(mneme_faiss_include faiss INTERFACE_INCLUDE_DIRECTORIES)
  find_path(MNEME_FAISS_GPU_INCLUDE faiss/gpu/StandardGpuResources.h PATHS ${mneme_faiss_include} NO_DEFAULT_PATH NO_CACHE)
  if(NOT MNEME_FAISS_GPU_INCLUDE)
    set(mneme_faiss_gpu_lacks "FAISS ${faiss_VERSION} in ${faiss_DIR} has no faiss/gpu/*.h: give one built with \
FAISS_ENABLE_GPU by -Dfaiss_DIR or CMAKE_PREFIX_PATH")
  elseif(NOT CUDAToolkit_FOUND)
    set(mneme_faiss_gpu_lacks "no CUDA toolkit was found: give it by -DCUDAToolkit_ROOT")
  else()
    # One CUDA runtime a process: FAISS's. A shared FAISS has its own beside it or in it.
    set(mneme_faiss_cudart CUDA::cudart)
    if(TARGET faiss_gpu_objs)
      get_target_property(mneme_faiss_gpu_links faiss_gpu_objs INTERFACE_LINK_LIBRARIES)
      if(mneme_faiss_gpu_links MATCHES "cudart_static")
        set(mneme_faiss_cudart CUDA::cudart_static)
      endif()
    endif()
    file(WRITE "${PROJECT_BINARY_DIR}/CMakeFiles/faiss_gpu.cc" "
#include <cuda_runtime_api.h>
#include <faiss/gpu/GpuCloner.h>
#include <faiss/gpu/GpuIndexFlat.h>
#include <faiss/gpu/GpuIndexIVFFlat.h>
#include <faiss/gpu/GpuIndexIVFPQ.h>
#include <faiss/gpu/StandardGpuResources.h>
int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) return 1;
  faiss::gpu::StandardGpuResources resources;
  faiss::gpu::GpuIndexFlatL2 flat(&resources, 8);
  faiss::gpu::GpuIndexIVFFlat lists(&resources, 8, 2, faiss::METRIC_INNER_PRODUCT);
  faiss::gpu::GpuIndexIVFPQ codes(&resources, 8, 2, 4, 8, faiss::METRIC_INNER_PRODUCT);
  delete faiss::gpu::index_gpu_to_cpu(&flat);
}
")
    try_compile(mneme_faiss_gpu_links_up "${PROJECT_BINARY_DIR}/CMakeFiles/faiss_gpu"
      SOURCES "${PROJECT_BINARY_DIR}/CMakeFiles/faiss_gpu.cc"
      LINK_LIBRARIES ${mneme_faiss_links} ${mneme_faiss_cudart}
      CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON OUTPUT_VARIABLE mneme_faiss_gpu_said)
    if(mneme_faiss_gpu_links_up)
      set(MNEME_FAISS_HAS_GPU ON)
    else()
      file(WRITE "${PROJECT_BINARY_DIR}/CMakeFiles/faiss_gpu.log" "${mneme_faiss_gpu_said}")
      set(mneme_faiss_gpu_lacks "what calls those of FAISS ${faiss_VERSION} in ${faiss_DIR} does not link: see \
${PROJECT_BINARY_DIR}/CMakeFiles/faiss_gpu.log")
    endif()
  endif()
else()
  set(mneme_faiss_gpu_lacks "MNEME_FAISS_GPU is OFF")
endif()

if(MNEME_FAISS_HAS_GPU)
  message(STATUS "FAISS's GPU indices: ON (FAISS ${faiss_VERSION}, CUDA ${CUDAToolkit_VERSION})")
  target_link_libraries(mneme_faiss INTERFACE ${mneme_faiss_cudart})
  if(mneme_faiss_cudart STREQUAL "CUDA::cudart")
    set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  endif()
elseif(MNEME_FAISS_GPU STREQUAL "AUTO" OR NOT MNEME_FAISS_GPU)
  message(STATUS "FAISS's GPU indices: OFF (${mneme_faiss_gpu_lacks})")
else()
  message(FATAL_ERROR "MNEME_FAISS_GPU=${MNEME_FAISS_GPU}: ${mneme_faiss_gpu_lacks}")
endif()
