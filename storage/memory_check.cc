// SPDX-License-Identifier: Apache-2.0
#include "storage/memory_check.h"

#include <sys/mman.h>

#include <cstddef>

#include "absl/strings/str_cat.h"

namespace mneme {
namespace {

// Two flushes at once with their buffers and the stacks of their threads, the memory that is being filled, and what a
// commit itself builds.
constexpr size_t kWriteBytes = size_t{96} << 20;

}  // namespace

absl::Status CheckMemoryForWrite() {
  // Only the system is asked, no page is touched: a limit of the process and a system that does not overcommit both say
  // no here. Memory that a control group limits is not reserved by this.
  void* const bytes = ::mmap(nullptr, kWriteBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (bytes == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("out of memory: a write needs room for ", kWriteBytes >> 20,
                                                     " MiB more; nothing was changed, try again with more memory"));
  }
  ::munmap(bytes, kWriteBytes);
  return absl::OkStatus();
}

}  // namespace mneme
