// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_DEVICE_SUPPORT_H_
#define MNEME_MEMORY_ATTEND_DEVICE_SUPPORT_H_

#include <cstdint>
#include <optional>

#include "base/model_card.h"
#include "memory/attend/argument_error.h"
#include "memory/attend/request.h"
#include "memory/device/device.h"

namespace mneme {

// Which calls the device's kernels support. No other file decides it.

// The most rows that one launch may retrieve: queries * query heads * top_k. Its workspace on the device grows with
// them.
inline constexpr int64_t kMostRetrievedRows = int64_t{1} << 18;
// The most sequences of one launch.
inline constexpr size_t kMostSequences = 65535;

// The part of a call that the device does.
enum class DevicePart : uint8_t {
  kSearch,  // search and attention over retrieved rows; queries are copied from host memory
  kAll,     // the whole call, on tensors that lie on the device
};

// Returns: why the kernels cannot do this part of the request, apart from its memories. They need f16 or bf16 queries,
// used as they are (kAsStored, not normalised), and at most 256 rows a head. For kAll also: local rows of the queries'
// type, aligned to 16 bytes with strides of multiples of 8 elements; contiguous queries and outputs; a mask that is
// none, causal or a sliding window, with the queries the newest local rows; no memory_mass in gated fusion; at most
// kMostRetrievedRows and kMostSequences.
UnsupportedReason CheckDeviceSupport(const AttendRequest& request, DevicePart part);

// The memories that one launch searches: all on one device, and with rows of one type.
class LaunchMemories {
 public:
  // device: null: that of the first memory. stored: the rows' type; none: that of the first memory, which must be kI8
  // or query_type.
  LaunchMemories(const LayerCard& layer, DType query_type, Device* device = nullptr,
                 std::optional<DType> stored = std::nullopt)
      : layer_(layer), query_type_(query_type), device_(device), stored_(stored) {}

  // Adds a memory if the launch can search it; `number` is its place in the batch. Returns: why it cannot.
  UnsupportedReason Add(const Memory& memory, size_t number);

  Device* device() const { return device_; }
  std::optional<DType> stored() const { return stored_; }

 private:
  const LayerCard& layer_;
  const DType query_type_;
  Device* device_;
  std::optional<DType> stored_;
};

// Whether the fusion uses local rows and the call gives them. A sequence may still have none (HasLocalRows).
bool CallHasLocalRows(const AttendRequest& request);
// Returns: the most rows that a head retrieves; 0: no head has a memory.
int64_t GreatestTopK(const AttendRequest& request);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_DEVICE_SUPPORT_H_
