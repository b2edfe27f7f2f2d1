// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_DEVICE_EMULATED_H_
#define MNEME_TESTS_CAPI_DEVICE_EMULATED_H_

#include "tests/attention/cuda/emulated_runtime.h"
#include "tests/capi/device/testing.h"

namespace mneme {

// Tests on the emulated device, which can be inspected and made to fail. Checks that all device memory is freed.
class DeviceTest : public TwinTest {
 protected:
  DeviceTest() : device_(cuda::EmulatedDevice::Get()) { device_.Reset(TestSeed()); }
  void TearDown() override {
    CloseStores();
    EXPECT_EQ(device_.Finish(), "");
    EXPECT_EQ(device_.bytes_held(), 0) << "device memory is not freed";
  }
  int64_t Waits() const override { return device_.synchronised(); }

  cuda::EmulatedDevice& device_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_DEVICE_EMULATED_H_
