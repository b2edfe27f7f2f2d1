// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/rows_layout.h"

#include "attention/cuda/argument_error.h"

namespace mneme::cuda {
namespace {

std::string CheckSource(const std::string& name, const RowsToAppend& source, int64_t dim, int64_t kv_heads,
                        bool captured) {
  if (source.data == nullptr) return ArgumentError(name + ".data", "a pointer", "NULL");
  if (source.type != DType::kF32 && source.type != DType::kF16 && source.type != DType::kBF16) {
    return ArgumentError(name + ".type", "f32, f16 or bf16", "another");
  }
  if (!source.on_device) {
    if (captured)
      return ArgumentError(name + ".on_device", "device memory, as the stream is being captured", "the host's");
    if (source.row_stride < dim) {
      return ArgumentError(name + ".row_stride", "at least " + std::to_string(dim), source.row_stride);
    }
    if (kv_heads > 1 && source.head_stride < dim) {
      return ArgumentError(name + ".head_stride", "at least " + std::to_string(dim), source.head_stride);
    }
  }
  return "";
}

}  // namespace

bool DeviceBudget::Take(int64_t bytes) {
  int64_t used = used_.load();
  do {
    if (bytes > bytes_ - used) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes));
  return true;
}

std::string CheckRowsShape(const RowsShape& shape) {
  if (shape.kv_heads < 1 || shape.kv_heads > 65535) {
    return ArgumentError("shape.kv_heads", "1 to 65535", shape.kv_heads);
  }
  if (!HasKernelsForDim(shape.key_dim)) return ArgumentError("shape.key_dim", "64, 128 or 256", shape.key_dim);
  if (!HasKernelsForDim(shape.value_dim)) return ArgumentError("shape.value_dim", "64, 128 or 256", shape.value_dim);
  if (shape.type != DType::kF16 && shape.type != DType::kBF16 && shape.type != DType::kI8) {
    return ArgumentError("shape.type", "f16, bf16 or i8", "another");
  }
  if (shape.capacity < 1 || shape.capacity > UINT32_MAX) {
    return ArgumentError("shape.capacity", "1 to 4294967295", shape.capacity);
  }
  return "";
}

RowsLayout LayoutOf(const RowsShape& shape) {
  const int64_t rows = shape.kv_heads * shape.capacity;
  const int64_t each = ElementBytes(shape.type);
  const int64_t scales = shape.type == DType::kI8 ? 4 * rows : 0;
  RowsLayout at;
  at.keys = 0;
  at.values = at.keys + RoundUp(rows * shape.key_dim * each, 256);
  at.key_scales = at.values + RoundUp(rows * shape.value_dim * each, 256);
  at.value_scales = at.key_scales + RoundUp(scales, 256);
  at.staging = at.value_scales + RoundUp(scales, 256);
  at.rows = at.staging + Greatest(kStagingBytes, RoundUp(int64_t{4} * shape.kv_heads * 256, 256));
  at.bytes = at.rows + RoundUp(sizeof(MemoryRows), 256);
  return at;
}

int64_t DeviceRowsBytes(const RowsShape& shape) {
  return LayoutOf(shape).bytes;
}

std::string CheckAppend(const RowsShape& shape, int64_t size, int64_t tokens, const RowsToAppend& keys,
                        const RowsToAppend& values, bool captured) {
  if (tokens < 0) return ArgumentError("tokens", "at least 0", tokens);
  const int64_t room = captured ? shape.capacity : shape.capacity - size;
  if (tokens > room) {
    return ArgumentError(
        "tokens", "at most " + std::to_string(room) + ", the room " + (captured ? "there is" : "that is left"), tokens);
  }
  if (tokens == 0) return "";
  std::string wrong = CheckSource("keys", keys, shape.key_dim, shape.kv_heads, captured);
  return wrong.empty() ? CheckSource("values", values, shape.value_dim, shape.kv_heads, captured) : wrong;
}

}  // namespace mneme::cuda
