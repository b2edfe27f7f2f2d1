// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_DEVICE_EMULATED_H_
#define MNEME_TESTS_CAPI_DEVICE_EMULATED_H_

#include "tests/attention/cuda/emulated_runtime.h"
#include "tests/capi/device/testing.h"

namespace mneme {

// With the emulated device, which can be looked at and made to fail. All of its memory is given back in the end.
class DeviceTest : public TwinTest {
 protected:
  DeviceTest() : device_(cuda::EmulatedDevice::Get()) { device_.Reset(TestSeed()); }
  void TearDown() override {
    CloseStores();
    EXPECT_EQ(device_.Finish(), "");
    EXPECT_EQ(device_.bytes_held(), 0) << "device memory is not given back";
  }
  int64_t Waits() const override { return device_.synchronised(); }

  cuda::EmulatedDevice& device_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_DEVICE_EMULATED_H_
