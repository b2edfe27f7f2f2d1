// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_ALLOCATION_FAILURES_FAILING_NEW_H_
#define MNEME_TESTS_CAPI_ALLOCATION_FAILURES_FAILING_NEW_H_

#include <cstdint>

namespace mneme {

// Which calls of operator new fail. Only those of threads that called CountThisThread are counted.
struct AllocationFault {
  enum class Where {
    kMneme,    // calls made outside RocksDB
    kRocksDb,  // calls made inside RocksDB: some frame of the call stack lies in its library
  };
  Where where = Where::kMneme;
  int64_t nth = 1;       // the first call that fails, counted from 1
  bool forever = false;  // all later calls fail, too
};

// The calling thread's allocations are counted from now on.
void CountThisThread();

void Arm(const AllocationFault& fault);
// Returns: whether a call failed since Arm.
bool Disarm();

// Prints the call stack of the first call that failed since Arm.
void PrintFailedCall();

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_ALLOCATION_FAILURES_FAILING_NEW_H_
