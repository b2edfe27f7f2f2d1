// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/device.h"

namespace mneme::cuda {

std::string Describe() {
  return "off";
}

}  // namespace mneme::cuda
