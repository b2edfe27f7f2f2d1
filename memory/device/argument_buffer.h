// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_ARGUMENT_BUFFER_H_
#define MNEME_MEMORY_DEVICE_ARGUMENT_BUFFER_H_

#include <cstdint>

#include "absl/status/status.h"

#include "attention/cuda/device.h"
#include "attention/cuda/problem.h"
#include "attention/cuda/runtime.h"
#include "memory/device/call_context.h"

namespace mneme {

// The small arrays of one launch, one behind the other: one copy brings all inputs to the device, another one brings
// all outputs back. An array has the same offset on both sides.
//
// First AddInput for every input, then AddOutput for every output, then Reserve or Place, and only then Host and
// OnDevice.
class ArgumentBuffer {
 public:
  // An array of the buffer.
  template <typename T>
  struct Array {
    int64_t offset = 0;  // in bytes
  };

  // An array of n elements.
  template <typename T>
  Array<T> AddInput(int64_t n) {
    const Array<T> array{input_bytes_};
    input_bytes_ = end_ = cuda::RoundUp(input_bytes_ + n * static_cast<int64_t>(sizeof(T)), kAlignment);
    return array;
  }
  template <typename T>
  Array<T> AddOutput(int64_t n) {
    const Array<T> array{end_};
    end_ = cuda::RoundUp(end_ + n * static_cast<int64_t>(sizeof(T)), kAlignment);
    return array;
  }
  int64_t input_bytes() const { return input_bytes_; }

  // Places the arrays in the buffers of `context`. Errors: ResourceExhausted.
  absl::Status Reserve(CallContext& context);
  // Places them in bytes of the caller.
  void Place(char* host, char* device) {
    host_ = host;
    device_ = device;
  }

  template <typename T>
  T* Host(Array<T> array) const {
    return reinterpret_cast<T*>(host_ + array.offset);
  }
  template <typename T>
  T* OnDevice(Array<T> array) const {
    return reinterpret_cast<T*>(device_ + array.offset);
  }

  // Queues on `stream`, which may be another than the context's: the copy of the inputs, the kernels, the copy of the
  // outputs, the context's event. Requires: Reserve of the same context; pointers of `problem` into the buffer are
  // OnDevice's. Errors: ResourceExhausted, and then no work was queued; Unavailable if the device failed.
  absl::Status Launch(CallContext& context, cuda::Runtime& runtime, const cuda::AttendProblem& problem,
                      const cuda::AttendBounds& bounds, void* stream);

 private:
  static constexpr int64_t kAlignment = 256;

  int64_t input_bytes_ = 0, end_ = 0;
  char* host_ = nullptr;
  char* device_ = nullptr;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_ARGUMENT_BUFFER_H_
