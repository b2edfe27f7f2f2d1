// SPDX-License-Identifier: Apache-2.0
#include "tests/capi/allocation_failures/failing_new.h"

#include <execinfo.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "tests/capi/replaced_new.h"

namespace {

using mneme::AllocationFault;

constexpr int kMostFrames = 100;

std::atomic<bool> armed{false};
AllocationFault fault;  // written before `armed`
std::atomic<int64_t> counted{0};
std::atomic<bool> failed{false};
void* failed_frames[kMostFrames];
int failed_frame_count = 0;
thread_local bool counts = false;

// Where RocksDB's code lies. (dladdr would look for symbols, which takes milliseconds.)
uintptr_t rocksdb_begin = 0, rocksdb_end = 0;

int FindRocksDb(dl_phdr_info* info, size_t, void*) {
  if (std::strstr(info->dlpi_name, "librocksdb") == nullptr) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || (part.p_flags & PF_X) == 0) continue;
    rocksdb_begin = info->dlpi_addr + part.p_vaddr;
    rocksdb_end = rocksdb_begin + part.p_memsz;
  }
  return 1;
}

bool InRocksDb(void* const* frames, int count) {
  return std::any_of(frames, frames + count, [](void* frame) {
    const auto address = reinterpret_cast<uintptr_t>(frame);
    return address >= rocksdb_begin && address < rocksdb_end;
  });
}

// Whether this call fails.
bool Fails() {
  void* frames[kMostFrames];
  const int count = backtrace(frames, kMostFrames);
  if (InRocksDb(frames, count) != (fault.where == AllocationFault::Where::kRocksDb)) return false;
  const int64_t number = ++counted;
  if (fault.forever ? number < fault.nth : number != fault.nth) return false;
  if (!failed.exchange(true)) {
    std::memcpy(failed_frames, frames, sizeof(frames));
    failed_frame_count = count;
  }
  return true;
}

}  // namespace

namespace mneme {

void BeforeNew() {
  if (counts && armed.load(std::memory_order_acquire) && Fails()) throw std::bad_alloc();
}

void CountThisThread() {
  void* frame;
  backtrace(&frame, 1);  // its first call loads a library
  dl_iterate_phdr(FindRocksDb, nullptr);
  if (rocksdb_end == 0) std::abort();
  counts = true;
}

void Arm(const AllocationFault& wanted) {
  fault = wanted;
  counted = 0;
  failed = false;
  armed.store(true, std::memory_order_release);
}

bool Disarm() {
  armed = false;
  return failed;
}

void PrintFailedCall() {
  backtrace_symbols_fd(failed_frames, failed_frame_count, STDERR_FILENO);
}

}  // namespace mneme
