// SPDX-License-Identifier: Apache-2.0
#include "base/floating_point.h"

namespace mneme {
namespace {

thread_local FloatingPointScope* innermost = nullptr;

#if defined(__x86_64__)

constexpr uint32_t kMxcsrModes = 0xffc0;  // traps, rounding, flush-to-zero, denormals-are-zero
constexpr uint32_t kMxcsrDefault = 0x1f80;
constexpr uint16_t kX87Modes = 0x0f3f;  // traps, precision, rounding
constexpr uint16_t kX87Default = 0x037f;
constexpr uint16_t kX87Traps = 0x003f;
constexpr uint16_t kX87Flags = 0x007f;

uint32_t Mxcsr() {
  uint32_t value;
  asm volatile("stmxcsr %0" : "=m"(value) : : "memory");
  return value;
}

void SetMxcsr(uint32_t value) {
  asm volatile("ldmxcsr %0" : : "m"(value) : "memory");
}

uint16_t X87Control() {
  uint16_t value;
  asm volatile("fnstcw %0" : "=m"(value) : : "memory");
  return value;
}

uint16_t X87Status() {
  uint16_t value;
  asm volatile("fnstsw %0" : "=m"(value) : : "memory");
  return value;
}

using X87Environment = uint32_t[7];

// FNSTENV also masks all exceptions, so that the next instruction raises no pending one.
void StoreX87(X87Environment& environment) {
  asm volatile("fnstenv %0" : "=m"(environment) : : "memory");
}

void LoadX87(const X87Environment& environment) {
  asm volatile("fldenv %0" : : "m"(environment) : "memory");
}

void SetX87Control(uint16_t value) {
  asm volatile("fldcw %0" : : "m"(value) : "memory");
}

void ClearX87Flags() {
  asm volatile("fnclex" : : : "memory");
}

bool HasDefaultX87(const FloatingPointState& state) {
  return (state.x87_control & kX87Modes) == (kX87Default & kX87Modes);
}

bool HasX87Traps(const FloatingPointState& state) {
  return (state.x87_control & kX87Traps) != kX87Traps;
}

// Saves the state and sets the default modes. If traps are unmasked, FNSTENV and FLDENV change the masks: they are
// three times faster than FLDCW, which would also raise a pending exception.
void Enter(FloatingPointState& state) {
  state.mxcsr = Mxcsr();
  if ((state.mxcsr & kMxcsrModes) != kMxcsrDefault) SetMxcsr((state.mxcsr & ~kMxcsrModes) | kMxcsrDefault);
  state.x87_control = X87Control();
  if (HasX87Traps(state)) {
    StoreX87(state.x87_environment);
  } else {
    state.x87_status = X87Status();
  }
  if ((state.x87_control & kX87Modes & ~kX87Traps) != (kX87Default & kX87Modes & ~kX87Traps))
    SetX87Control(kX87Default);
}

void RestoreX87Flags(uint16_t flags) {
  ClearX87Flags();
  if (flags == 0) return;
  X87Environment environment;
  StoreX87(environment);
  environment[1] |= flags;
  LoadX87(environment);
}

void Leave(const FloatingPointState& state) {
  if (HasX87Traps(state)) {
    LoadX87(state.x87_environment);
  } else {
    if (((X87Status() ^ state.x87_status) & kX87Flags) != 0) RestoreX87Flags(state.x87_status & kX87Flags);
    if (!HasDefaultX87(state)) SetX87Control(state.x87_control);
  }
  if (Mxcsr() != state.mxcsr) SetMxcsr(state.mxcsr);
}

#elif defined(__aarch64__)

// Traps (bits 8 to 15), rounding (22, 23), flush-to-zero of f16 (19) and of all (24), and the modes of newer processors
// (0 to 2).
constexpr uint64_t kFpcrModes = 0x01c89f07;

void Enter(FloatingPointState& state) {
  asm volatile("mrs %0, fpcr" : "=r"(state.fpcr) : : "memory");
  asm volatile("mrs %0, fpsr" : "=r"(state.fpsr) : : "memory");
  if ((state.fpcr & kFpcrModes) == 0) return;
  asm volatile("msr fpcr, %0" : : "r"(state.fpcr & ~kFpcrModes) : "memory");
}

void Leave(const FloatingPointState& state) {
  uint64_t fpsr;
  asm volatile("mrs %0, fpsr" : "=r"(fpsr) : : "memory");
  if (fpsr != state.fpsr) asm volatile("msr fpsr, %0" : : "r"(state.fpsr) : "memory");
  if ((state.fpcr & kFpcrModes) != 0) asm volatile("msr fpcr, %0" : : "r"(state.fpcr) : "memory");
}

#else

void Enter(FloatingPointState& state) {
  std::fegetenv(&state.environment);
  std::fesetenv(FE_DFL_ENV);
}

void Leave(const FloatingPointState& state) {
  std::fesetenv(&state.environment);
}

#endif

}  // namespace

FloatingPointScope::FloatingPointScope() noexcept : outer_(innermost) {
  Enter(saved_);
  innermost = this;
}

FloatingPointScope::~FloatingPointScope() {
  innermost = outer_;
  Leave(saved_);
}

// Drops the flags that mneme has raised so far, as the end of the scope does.
HostFloatingPointScope::HostFloatingPointScope() noexcept : scope_(innermost) {
  if (scope_ != nullptr) Leave(scope_->saved_);
}

HostFloatingPointScope::~HostFloatingPointScope() {
  if (scope_ != nullptr) Enter(scope_->saved_);
}

}  // namespace mneme
