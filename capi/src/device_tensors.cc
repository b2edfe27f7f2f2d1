// SPDX-License-Identifier: Apache-2.0
#include "capi/src/device_tensors.h"

#include "absl/strings/str_cat.h"

#include "attention/cuda/device.h"
#include "base/status.h"
#include "capi/src/tensors.h"

namespace mneme::capi {
absl::Status DeviceTensors::CheckDevice(absl::string_view name, const mneme_tensor& tensor) const {
  const auto refused = [&](absl::string_view why) {
    return absl::StrCat(name, ".device_type: expected host memory (MNEME_DEVICE_CPU, 1), got a CUDA tensor (2): ", why);
  };
  if (store_ == nullptr) return absl::UnimplementedError(refused("a call without a memory has no store and no device"));
  if (store_->options().device_budget_bytes == 0) {
    return absl::FailedPreconditionError(refused("the store is open without a device (options.device_budget_bytes)"));
  }
  if (store_->device() == nullptr) {
    return absl::FailedPreconditionError(refused(absl::StrCat("there is no device, cuda ", cuda::Describe())));
  }
  if (tensor.device_ordinal != store_->device()->ordinal()) {
    return absl::InvalidArgumentError(absl::StrCat(name, ".device_ordinal: expected ", store_->device()->ordinal(),
                                                   ", the store's device, got ", tensor.device_ordinal));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> DeviceTensors::IsOnDevice(absl::string_view name, const mneme_tensor* tensor,
                                               mneme_tensor* host_form) {
  if (tensor == nullptr || tensor->device_type != MNEME_DEVICE_CUDA) {
    on_host_ = name;
    return false;
  }
  MNEME_RETURN_IF_ERROR(CheckDevice(name, *tensor));
  *host_form = *tensor;
  host_form->device_type = MNEME_DEVICE_CPU;
  return true;
}

absl::Status DeviceTensors::Read(absl::string_view name, const mneme_tensor* tensor, RowTensor* out) {
  mneme_tensor host_form;
  MNEME_ASSIGN_OR_RETURN(const bool on_device, IsOnDevice(name, tensor, &host_form));
  MNEME_ASSIGN_OR_RETURN(*out, ReadRowTensor(name, on_device ? &host_form : tensor));
  if (on_device) staged_.AddInput(*store_->device(), out);
  return absl::OkStatus();
}

absl::Status DeviceTensors::Read(absl::string_view name, const mneme_tensor* tensor, MutableRowTensor* out) {
  mneme_tensor host_form;
  MNEME_ASSIGN_OR_RETURN(const bool on_device, IsOnDevice(name, tensor, &host_form));
  MNEME_ASSIGN_OR_RETURN(*out, ReadMutableRowTensor(name, on_device ? &host_form : tensor));
  if (on_device) staged_.AddOutput(*store_->device(), out);
  return absl::OkStatus();
}

absl::StatusOr<bool> DeviceTensors::IsCaptured() const {
  if (!staged_.has_stream()) return false;
  if (staged_.device() == nullptr) {
    return absl::InvalidArgumentError("args.stream: expected NULL where all tensors lie in host memory, got a stream");
  }
  bool captured = false;
  MNEME_RETURN_IF_ERROR(DeviceStatus(staged_.device()->runtime().IsCaptured(staged_.stream(), &captured)));
  return captured;
}

absl::Status DeviceTensors::CheckNotCaptured() const {
  MNEME_ASSIGN_OR_RETURN(const bool captured, IsCaptured());
  if (!captured) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "args.stream: expected one that is not being captured, since the call cannot be part of a graph; got one that "
      "is");
}

}  // namespace mneme::capi
