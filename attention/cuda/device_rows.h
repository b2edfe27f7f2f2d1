// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_DEVICE_ROWS_H_
#define MNEME_ATTENTION_CUDA_DEVICE_ROWS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "attention/cuda/problem.h"

namespace mneme::cuda {

// Limits the device memory of all DeviceRows that share the budget. Thread-safe.
class DeviceBudget {
 public:
  explicit DeviceBudget(int64_t bytes) : bytes_(bytes) {}

  int64_t bytes() const { return bytes_; }
  int64_t used() const { return used_.load(); }

  // Returns: whether there was room. If so, the bytes stay taken until they are given back.
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

// Returns: "" or what is wrong with the shape.
std::string CheckRowsShape(const RowsShape& shape);
// Returns: the bytes of device memory that DeviceRows of this shape take.
int64_t DeviceRowsBytes(const RowsShape& shape);

// The keys and values of one memory in one layer, on the device that was current at Create. Errors are text, "" for
// success. Not thread-safe. The caller orders the work of several streams on the same rows.
class DeviceRows {
 public:
  // Takes the bytes from `budget`, which must outlive the object, and allocates them.
  static std::string Create(const RowsShape& shape, DeviceBudget* budget, std::unique_ptr<DeviceRows>* rows);
  // Frees the memory. Like cudaFree, it waits for the device.
  ~DeviceRows();
  DeviceRows(const DeviceRows&) = delete;
  DeviceRows& operator=(const DeviceRows&) = delete;

  // Queues an append of the rows of `tokens` new tokens on `stream`, rounded to the rows' type (i8: as EncodeRow
  // rounds). It appends all of them or none. A source in device memory or pinned host memory must stay unchanged until
  // the stream has done the work; pageable host memory may be reused when the call returns.
  //
  // While `stream` is being captured, nothing is appended. Each replay of the graph appends all of its tokens if there
  // is room, else none. Sources must then lie on the device. size() counts neither the capture nor replays, because the
  // host does not learn of them; the caller counts replays, and calls SetVisible before an append that is not captured.
  std::string Append(int64_t tokens, const RowsToAppend& keys, const RowsToAppend& values, void* stream);

  // Queues a change: rows [begin, end) are visible, rows below `pinned` are pinned, and the next append writes at
  // `end`. size() becomes `end`, except while `stream` is being captured.
  std::string SetVisible(int64_t begin, int64_t end, int64_t pinned, void* stream);

  const RowsShape& shape() const { return shape_; }
  // The number of rows when the queued work is done, not counting what replayed graphs append.
  int64_t size() const { return size_; }
  int64_t bytes() const { return bytes_; }
  // An entry for AttendProblem::memories, in device memory. Valid as long as this object.
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
