// SPDX-License-Identifier: Apache-2.0
#include "memory/device/staged_tensors.h"

#include <utility>

#include "attention/cuda/device.h"
#include "base/status.h"

namespace mneme {

StagedTensors::~StagedTensors() {
  // After an error copies may still be running. Then the context is destroyed, which waits for them.
  if (context_ != nullptr && idle_) device_->ReturnContext(std::move(context_), /*busy=*/false);
}

template <typename View>
StagedTensors::Tensor StagedTensors::Describe(const View& view) {
  return {.data = const_cast<void*>(static_cast<const void*>(view.data)),
          .dtype = view.dtype,
          .rows = view.rows,
          .heads = view.heads,
          .dim = view.dim,
          .row_stride = view.row_stride,
          .head_stride = view.head_stride};
}

void StagedTensors::AddInput(Device& device, RowTensor* tensor) {
  device_ = &device;
  inputs_.push_back(Describe(*tensor));
  input_views_.push_back(tensor);
}

void StagedTensors::AddOutput(Device& device, MutableRowTensor* tensor) {
  device_ = &device;
  outputs_.push_back(Describe(*tensor));
  output_views_.push_back(tensor);
}

absl::Status StagedTensors::QueueCopyRows(const Tensor& tensor, const CopyRows& rows, bool to_host) {
  char* const host = context_->host_data() + tensor.host_offset + rows.host_offset;
  char* const on_device = static_cast<char*>(tensor.data) + rows.device_offset;
  cuda::CopyShape shape = {on_device, rows.device_pitch, host, rows.host_pitch, rows.bytes, rows.rows};
  if (!to_host) shape = {host, rows.host_pitch, on_device, rows.device_pitch, rows.bytes, rows.rows};
  idle_ = false;
  return DeviceStatus(device_->runtime().Copy(shape, copy_stream()));
}

// The copy on the host is contiguous. The fewest copies that the strides allow: one, one a head, or one a row.
absl::Status StagedTensors::QueueCopy(const Tensor& tensor, bool to_host) {
  if (tensor.rows == 0 || tensor.heads == 0 || tensor.dim == 0) return absl::OkStatus();
  const auto element_bytes = static_cast<int64_t>(DTypeSize(tensor.dtype));
  const int64_t row_bytes = tensor.dim * element_bytes;
  const int64_t token_bytes = tensor.heads * row_bytes;
  const int64_t row_pitch = tensor.row_stride * element_bytes, head_pitch = tensor.head_stride * element_bytes;
  const bool heads_adjoin = head_pitch == row_bytes || tensor.heads == 1;
  if (heads_adjoin && (row_pitch == token_bytes || tensor.rows == 1)) {
    return QueueCopyRows(tensor, {0, 0, 0, 0, tensor.rows * token_bytes, 1}, to_host);
  }
  if (heads_adjoin && row_pitch >= token_bytes) {
    return QueueCopyRows(tensor, {0, token_bytes, 0, row_pitch, token_bytes, tensor.rows}, to_host);
  }
  for (int64_t head = 0; head < tensor.heads; ++head) {
    if (row_pitch >= row_bytes) {
      MNEME_RETURN_IF_ERROR(QueueCopyRows(
          tensor, {head * row_bytes, token_bytes, head * head_pitch, row_pitch, row_bytes, tensor.rows}, to_host));
      continue;
    }
    // Rows overlap, or a stride is negative.
    for (int64_t row = 0; row < tensor.rows; ++row) {
      MNEME_RETURN_IF_ERROR(QueueCopyRows(
          tensor, {row * token_bytes + head * row_bytes, 0, row * row_pitch + head * head_pitch, 0, row_bytes, 1},
          to_host));
    }
  }
  return absl::OkStatus();
}

absl::Status StagedTensors::Wait() {
  MNEME_RETURN_IF_ERROR(DeviceStatus(device_->runtime().Record(context_->event(), copy_stream())));
  MNEME_RETURN_IF_ERROR(DeviceStatus(device_->runtime().Synchronise(context_->event())));
  idle_ = true;
  return absl::OkStatus();
}

absl::Status StagedTensors::CopyToHost() {
  if (device_ == nullptr) return absl::OkStatus();
  ++device_->counters().staged;
  MNEME_ASSIGN_OR_RETURN(context_, device_->BorrowContext());
  int64_t bytes = 0;
  for (std::vector<Tensor>* const tensors : {&inputs_, &outputs_}) {
    for (Tensor& tensor : *tensors) {
      tensor.host_offset = bytes;
      bytes += cuda::RoundUp(tensor.bytes(), 256);
    }
  }
  MNEME_RETURN_IF_ERROR(context_->ReserveHost(bytes));
  const auto point_to_copy = [&](const Tensor& tensor, auto& view) {
    view.data = context_->host_data() + tensor.host_offset;
    view.head_stride = view.dim;
    view.row_stride = view.heads * view.dim;
  };
  for (size_t i = 0; i < inputs_.size(); ++i) {
    MNEME_RETURN_IF_ERROR(QueueCopy(inputs_[i], true));
    point_to_copy(inputs_[i], *input_views_[i]);
  }
  for (size_t i = 0; i < outputs_.size(); ++i) point_to_copy(outputs_[i], *output_views_[i]);
  return inputs_.empty() ? absl::OkStatus() : Wait();
}

absl::Status StagedTensors::CopyToDevice() {
  if (outputs_.empty()) return absl::OkStatus();
  for (const Tensor& tensor : outputs_) MNEME_RETURN_IF_ERROR(QueueCopy(tensor, false));
  return Wait();
}

}  // namespace mneme
