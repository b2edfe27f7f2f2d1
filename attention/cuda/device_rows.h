// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_DEVICE_ROWS_H_
#define MNEME_ATTENTION_CUDA_DEVICE_ROWS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "attention/cuda/problem.h"

namespace mneme::cuda {

// Bytes of device memory that all rows which share the budget may take. Thread-safe.
class DeviceBudget {
 public:
  explicit DeviceBudget(int64_t bytes) : bytes_(bytes) {}

  int64_t bytes() const { return bytes_; }
  int64_t used() const { return used_.load(); }

  // True if there was room; the bytes are then taken until they are given back.
  bool Take(int64_t bytes);
  void Give(int64_t bytes) { used_ -= bytes; }

 private:
  const int64_t bytes_;
  std::atomic<int64_t> used_{0};
};

// New rows, [tokens, kv_heads, dim]; elements of a row are contiguous.
struct RowsToAppend {
  const void* data = nullptr;
  DType type = DType::kF16;  // kF32, kF16 or kBF16
  bool on_device = true;     // the current device's memory; else the host's
  int64_t row_stride = 0;    // in elements; on the host at least dim, as the next
  int64_t head_stride = 0;
};

struct RowsShape {
  int32_t kv_heads = 1;
  int32_t key_dim = 128;     // 64, 128 or 256
  int32_t value_dim = 128;   // 64, 128 or 256
  DType type = DType::kF16;  // kF16, kBF16 or kI8
  int64_t capacity = 0;      // rows, at least 1
};

// "" or what is wrong with it.
std::string CheckRowsShape(const RowsShape& shape);
// Of device memory, all that DeviceRows of this shape take.
int64_t DeviceRowsBytes(const RowsShape& shape);

// The keys and values of one memory in one layer, resident on the device that was current at Create. Errors are text,
// "" for success. Not thread-safe; work of several streams on the same rows is the caller's to order.
class DeviceRows {
 public:
  // Takes its bytes from `budget`, which outlives it, and allocates them.
  static std::string Create(const RowsShape& shape, DeviceBudget* budget, std::unique_ptr<DeviceRows>* rows);
  // Frees the memory; as cudaFree, it waits for the device.
  ~DeviceRows();
  DeviceRows(const DeviceRows&) = delete;
  DeviceRows& operator=(const DeviceRows&) = delete;

  // Queues the rows of `tokens` new tokens on `stream`, rounded to the rows' type (i8: as EncodeRow does it). All of
  // them or none. From the device, the source must stay until the stream has done the work; from the host, pageable
  // memory may be reused when the call returns, pinned memory is as the device's.
  //
  // While `stream` is being captured nothing is appended yet: each replay of the graph appends anew, all of its tokens
  // where there is room and none where there is not. Sources must lie on the device then. The host does not hear of
  // replays, so size() counts neither them nor the capture; who replays counts, and tells the rows by SetVisible before
  // an append that is not captured.
  std::string Append(int64_t tokens, const RowsToAppend& keys, const RowsToAppend& values, void* stream);

  // Queues that rows of [begin, end) are visible, and those below `pinned` are pinned. The next append writes at `end`,
  // and size() is `end` from now on; not so while `stream` is being captured, as above.
  std::string SetVisible(int64_t begin, int64_t end, int64_t pinned, void* stream);

  const RowsShape& shape() const { return shape_; }
  // Rows when the queued work is done, but for what replayed graphs appended.
  int64_t size() const { return size_; }
  int64_t bytes() const { return bytes_; }
  // On the device: an entry of AttendProblem::memories. Valid as long as this object.
  const MemoryRows* device() const { return rows_; }

 private:
  DeviceRows(const RowsShape& shape, DeviceBudget* budget, int64_t bytes)
      : shape_(shape), budget_(budget), bytes_(bytes) {}
  std::string Queue(int64_t tokens, const RowsToAppend& source, bool values, void* stream);

  const RowsShape shape_;
  DeviceBudget* const budget_;
  const int64_t bytes_;
  char* memory_ = nullptr;  // one allocation: keys, values, scales, staging, MemoryRows
  char* staging_ = nullptr;
  MemoryRows* rows_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_DEVICE_ROWS_H_
