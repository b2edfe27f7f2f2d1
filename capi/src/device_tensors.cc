// SPDX-License-Identifier: Apache-2.0
#include "capi/src/device_tensors.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "attention/cuda/device.h"
#include "base/status.h"
#include "capi/src/tensors.h"

namespace mneme::capi {
namespace {

bool OnDevice(const mneme_tensor* tensor) {
  return tensor != nullptr && tensor->device_type == MNEME_DEVICE_CUDA;
}

// The same tensor as the checks of host tensors take it; nothing of its data is looked at.
mneme_tensor AsHost(const mneme_tensor& tensor) {
  mneme_tensor host = tensor;
  host.device_type = MNEME_DEVICE_CPU;
  return host;
}

}  // namespace

DeviceTensors::~DeviceTensors() {
  // Where something failed copies may still be under way: that desk is nobody's, and goes when they are done.
  if (desk_ != nullptr && idle_) device().Return(std::move(desk_), /*busy=*/false);
}

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

template <typename Tensor, typename Reader>
absl::Status DeviceTensors::ReadBy(const Reader& read, absl::string_view name, const mneme_tensor* tensor, Tensor* out,
                                   std::vector<Placed>& placed, std::vector<Tensor*>& tensors) {
  if (!OnDevice(tensor)) {
    on_host_ = name;
    MNEME_ASSIGN_OR_RETURN(*out, read(name, tensor));
    return absl::OkStatus();
  }
  MNEME_RETURN_IF_ERROR(CheckDevice(name, *tensor));
  const mneme_tensor host = AsHost(*tensor);
  MNEME_ASSIGN_OR_RETURN(*out, read(name, &host));
  placed.push_back({const_cast<void*>(static_cast<const void*>(out->data)), out->dtype, out->rows, out->heads, out->dim,
                    out->row_stride, out->head_stride, 0});
  tensors.push_back(out);
  return absl::OkStatus();
}

absl::Status DeviceTensors::Read(absl::string_view name, const mneme_tensor* tensor, RowTensor* out) {
  return ReadBy(ReadRowTensor, name, tensor, out, inputs_, input_tensors_);
}

absl::Status DeviceTensors::Read(absl::string_view name, const mneme_tensor* tensor, MutableRowTensor* out) {
  return ReadBy(ReadMutableRowTensor, name, tensor, out, outputs_, output_tensors_);
}

absl::Status DeviceTensors::Copy(const Placed& tensor, bool to_host) {
  const auto each = static_cast<int64_t>(DTypeSize(tensor.dtype));
  const int64_t row_bytes = tensor.dim * each;
  char* const host = desk_->host_data() + tensor.at;
  char* const device_data = static_cast<char*>(tensor.data);
  idle_ = false;
  const auto copy = [&](int64_t host_at, int64_t host_pitch, int64_t device_at, int64_t device_pitch, int64_t bytes,
                        int64_t rows) {
    cuda::CopyShape shape = {device_data + device_at, device_pitch, host + host_at, host_pitch, bytes, rows};
    if (!to_host) shape = {host + host_at, host_pitch, device_data + device_at, device_pitch, bytes, rows};
    return DeviceStatus(device().runtime().Copy(shape, stream()));
  };
  if (tensor.rows == 0 || tensor.heads == 0 || tensor.dim == 0) return absl::OkStatus();
  const int64_t token_bytes = tensor.heads * row_bytes;
  const int64_t row_stride = tensor.row_stride * each, head_stride = tensor.head_stride * each;
  const bool heads_adjoin = head_stride == row_bytes || tensor.heads == 1;
  if (heads_adjoin && (row_stride == token_bytes || tensor.rows == 1)) {
    return copy(0, 0, 0, 0, tensor.rows * token_bytes, 1);
  }
  if (heads_adjoin && row_stride >= token_bytes) {
    return copy(0, token_bytes, 0, row_stride, token_bytes, tensor.rows);
  }
  for (int64_t head = 0; head < tensor.heads; ++head) {
    if (row_stride >= row_bytes) {
      MNEME_RETURN_IF_ERROR(
          copy(head * row_bytes, token_bytes, head * head_stride, row_stride, row_bytes, tensor.rows));
      continue;
    }
    // Rows that lie backwards or one upon another.
    for (int64_t row = 0; row < tensor.rows; ++row) {
      MNEME_RETURN_IF_ERROR(
          copy(row * token_bytes + head * row_bytes, 0, row * row_stride + head * head_stride, 0, row_bytes, 1));
    }
  }
  return absl::OkStatus();
}

absl::Status DeviceTensors::Wait() {
  MNEME_RETURN_IF_ERROR(DeviceStatus(device().runtime().Record(desk_->event(), stream())));
  MNEME_RETURN_IF_ERROR(DeviceStatus(device().runtime().Synchronise(desk_->event())));
  idle_ = true;
  return absl::OkStatus();
}

absl::StatusOr<bool> DeviceTensors::IsCaptured() const {
  if (!has_stream_) return false;
  if (inputs_.empty() && outputs_.empty()) {
    return absl::InvalidArgumentError("args.has_stream: expected 0 where all tensors lie in host memory, got another");
  }
  bool captured = false;
  MNEME_RETURN_IF_ERROR(DeviceStatus(device().runtime().IsCaptured(stream_, &captured)));
  return captured;
}

absl::Status DeviceTensors::CheckNotCaptured() const {
  MNEME_ASSIGN_OR_RETURN(const bool captured, IsCaptured());
  if (!captured) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "args.stream: expected one that is not being captured, since the call cannot be part of a graph; got one that "
      "is");
}

absl::Status DeviceTensors::Arrive() {
  if (inputs_.empty() && outputs_.empty()) return absl::OkStatus();
  ++device().counters().staged;
  MNEME_ASSIGN_OR_RETURN(desk_, device().Borrow());
  int64_t bytes = 0;
  for (std::vector<Placed>* const tensors : {&inputs_, &outputs_}) {
    for (Placed& tensor : *tensors) {
      tensor.at = bytes;
      bytes +=
          cuda::RoundUp(tensor.rows * tensor.heads * tensor.dim * static_cast<int64_t>(DTypeSize(tensor.dtype)), 256);
    }
  }
  MNEME_RETURN_IF_ERROR(desk_->ReserveHost(bytes));
  const auto point = [&](const Placed& tensor, auto& view) {
    view.data = desk_->host_data() + tensor.at;
    view.head_stride = view.dim;
    view.row_stride = view.heads * view.dim;
  };
  for (size_t i = 0; i < inputs_.size(); ++i) {
    MNEME_RETURN_IF_ERROR(Copy(inputs_[i], true));
    point(inputs_[i], *input_tensors_[i]);
  }
  for (size_t i = 0; i < outputs_.size(); ++i) point(outputs_[i], *output_tensors_[i]);
  if (inputs_.empty()) return absl::OkStatus();
  return Wait();
}

absl::Status DeviceTensors::Depart() {
  if (outputs_.empty()) return absl::OkStatus();
  for (const Placed& tensor : outputs_) MNEME_RETURN_IF_ERROR(Copy(tensor, false));
  return Wait();
}

}  // namespace mneme::capi
