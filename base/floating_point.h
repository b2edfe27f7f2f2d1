// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_FLOATING_POINT_H_
#define MNEME_BASE_FLOATING_POINT_H_

#include <cfenv>
#include <cstdint>

namespace mneme {

// A host may have unmasked floating-point traps, flush denormals to zero or round in another direction. mneme computes
// in the default environment (all exceptions masked, denormals kept, round to nearest), so that results have the same
// bits for every host, and restores the host's environment.

// The modes and sticky exception flags of a thread's floating-point registers.
struct FloatingPointState {
#if defined(__x86_64__)
  uint32_t mxcsr;
  uint16_t x87_control;
  uint16_t x87_status;          // only if no trap is unmasked
  uint32_t x87_environment[7];  // as FNSTENV writes it; only if traps are unmasked
#elif defined(__aarch64__)
  uint64_t fpcr;
  uint64_t fpsr;
#else
  std::fenv_t environment;
#endif
};

// While it lives, the thread computes in the default environment. At its end, modes and flags are as before.
class FloatingPointScope {
 public:
  FloatingPointScope() noexcept;
  ~FloatingPointScope();
  FloatingPointScope(const FloatingPointScope&) = delete;
  FloatingPointScope& operator=(const FloatingPointScope&) = delete;

 private:
  friend class HostFloatingPointScope;
  FloatingPointState saved_;
  FloatingPointScope* const outer_;
};

// For a callback into the host: while it lives, the thread has the environment that its innermost FloatingPointScope
// found. If the callback changes the environment, the host finds the change after the call. Does nothing on a thread
// without a FloatingPointScope.
class HostFloatingPointScope {
 public:
  HostFloatingPointScope() noexcept;
  ~HostFloatingPointScope();
  HostFloatingPointScope(const HostFloatingPointScope&) = delete;
  HostFloatingPointScope& operator=(const HostFloatingPointScope&) = delete;

 private:
  FloatingPointScope* const scope_;
};

}  // namespace mneme

#endif  // MNEME_BASE_FLOATING_POINT_H_
