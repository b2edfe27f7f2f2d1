#include "attention/cuda/device.h"

namespace mneme::cuda {

std::string Describe() {
  return "off";
}

}  // namespace mneme::cuda
