# FAISS on the CPU: Debian's libfaiss-dev or a newer one given by -Dfaiss_DIR / CMAKE_PREFIX_PATH. Gives the
# target mneme_faiss and MNEME_FAISS_VERSION. FAISS needs OpenMP and a BLAS; it is linked statically, and its
# symbols stay inside libmneme.
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(BLAS REQUIRED)
find_package(LAPACK REQUIRED)
find_package(faiss REQUIRED)
set(MNEME_FAISS_VERSION "${faiss_VERSION}")
add_library(mneme_faiss INTERFACE)
target_link_libraries(mneme_faiss INTERFACE faiss OpenMP::OpenMP_CXX LAPACK::LAPACK BLAS::BLAS)
