// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_DEVICE_TENSORS_H_
#define MNEME_CAPI_SRC_DEVICE_TENSORS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/tensor.h"
#include "memory/device/staged_tensors.h"
#include "memory/store.h"
#include "mneme.h"

namespace mneme::capi {

// Reads the tensors of one call, in host memory or on the store's device. Those on the device become StagedTensors.
class DeviceTensors {
 public:
  // store: null if the call has none. stream NULL: work that fills the inputs must have ended.
  DeviceTensors(Store* store, const mneme_stream* stream)
      : store_(store), staged_(stream != nullptr, stream != nullptr ? stream->handle : nullptr) {}

  // As ReadRowTensor and ReadMutableRowTensor, for tensors of the store's device, too. `out` must not move, and if the
  // tensor is on the device, the host can read its data after CopyToHost only. `name` must stay valid.
  // Errors: FailedPrecondition or Unimplemented if the store has no device for it.
  absl::Status Read(absl::string_view name, const mneme_tensor* tensor, RowTensor* out);
  absl::Status Read(absl::string_view name, const mneme_tensor* tensor, MutableRowTensor* out);

  // The following require: all tensors have been read.

  // Returns: whether the call's stream is being captured. Errors: InvalidArgument if no tensor needs the stream.
  absl::StatusOr<bool> IsCaptured() const;
  // Errors: FailedPrecondition if the stream is being captured, for a call that can be part of no graph.
  absl::Status CheckNotCaptured() const;
  bool AllOnDevice() const { return on_host_.empty(); }
  // Returns: the name of a tensor in host memory; "" if there is none.
  absl::string_view on_host() const { return on_host_; }
  // Returns: null if all tensors lie in host memory.
  StagedTensors* staged() { return staged_.device() != nullptr ? &staged_ : nullptr; }

  // Copies the inputs to the host and waits for them.
  absl::Status CopyToHost() { return staged_.CopyToHost(); }

 private:
  absl::Status CheckDevice(absl::string_view name, const mneme_tensor& tensor) const;
  // Whether a tensor is on the store's device. Then *host_form becomes the same tensor as the checks of host tensors
  // take it; they do not read its data.
  absl::StatusOr<bool> IsOnDevice(absl::string_view name, const mneme_tensor* tensor, mneme_tensor* host_form);

  Store* const store_;
  absl::string_view on_host_;
  StagedTensors staged_;
};

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_DEVICE_TENSORS_H_
