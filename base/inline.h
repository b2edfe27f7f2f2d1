// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_INLINE_H_
#define MNEME_BASE_INLINE_H_

// Plain macros, so that kernels may include this header (docs/design/kernels.md).

// The function is always inlined into its caller: no copy of it that one CPU needs and another cannot run is shared.
#define MNEME_INLINE inline __attribute__((always_inline))

// The function is never inlined: for a rare path, or for a loop that needs all registers.
#define MNEME_NOINLINE __attribute__((noinline))

#endif  // MNEME_BASE_INLINE_H_
