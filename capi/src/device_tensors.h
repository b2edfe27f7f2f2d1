// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_DEVICE_TENSORS_H_
#define MNEME_CAPI_SRC_DEVICE_TENSORS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "base/tensor.h"
#include "memory/device/device.h"
#include "memory/store.h"
#include "mneme.h"

namespace mneme::capi {

// The tensors of one call that lie on the store's device. They pass through pinned host memory: inputs are brought to
// the host before the engine looks at them, outputs are written there and taken to the device afterwards, all on the
// call's stream and in its order. So the host waits for the stream twice at most, and everything else goes as with host
// tensors.
//
// A tensor that is registered must stay where it is until the call's end: its data is made to point to the host's copy.
class DeviceTensors {
 public:
  // store: null where the call has none. Without has_stream what fills the inputs must be done already.
  DeviceTensors(Store* store, int32_t has_stream, void* stream)
      : store_(store), has_stream_(has_stream != 0), stream_(stream) {}
  ~DeviceTensors();
  DeviceTensors(const DeviceTensors&) = delete;
  DeviceTensors& operator=(const DeviceTensors&) = delete;

  // As ReadRowTensor and ReadMutableRowTensor, but for tensors of the store's device, too. One there has no data that
  // the host could read until Arrive. FailedPrecondition or Unimplemented where there is no device for it. Names stay.
  absl::Status Read(absl::string_view name, const mneme_tensor* tensor, RowTensor* out);
  absl::Status Read(absl::string_view name, const mneme_tensor* tensor, MutableRowTensor* out);

  // All are read: whether the call's stream is being captured. InvalidArgument for a stream that no tensor needs.
  absl::StatusOr<bool> IsCaptured() const;
  // The same for a call that can be part of no graph.
  absl::Status CheckNotCaptured() const;
  // Whether every tensor that was read lies on the device, and the name of one that does not.
  bool All() const { return on_host_.empty(); }
  absl::string_view on_host() const { return on_host_; }
  Device& device() const { return *store_->device(); }

  // Brings the inputs to the host and waits for them.
  absl::Status Arrive();
  // The call went well: takes the outputs to the device and waits until they are there.
  absl::Status Depart();

 private:
  struct Placed {
    void* data = nullptr;  // on the device
    DType dtype = DType::kF32;
    int64_t rows = 0, heads = 0, dim = 0, row_stride = 0, head_stride = 0;
    int64_t at = 0;  // in the desk's host memory
  };

  template <typename Tensor, typename Reader>
  absl::Status ReadBy(const Reader& read, absl::string_view name, const mneme_tensor* tensor, Tensor* out,
                      std::vector<Placed>& placed, std::vector<Tensor*>& tensors);
  absl::Status CheckDevice(absl::string_view name, const mneme_tensor& tensor) const;
  absl::Status Copy(const Placed& tensor, bool to_host);
  absl::Status Wait();
  void* stream() const { return has_stream_ ? stream_ : desk_->stream(); }

  Store* const store_;
  const bool has_stream_;
  void* const stream_;
  absl::string_view on_host_;
  std::vector<Placed> inputs_, outputs_;
  std::vector<RowTensor*> input_tensors_;
  std::vector<MutableRowTensor*> output_tensors_;
  std::unique_ptr<DeviceDesk> desk_;
  bool idle_ = true;  // nothing of this call is under way on the desk
};

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_DEVICE_TENSORS_H_
