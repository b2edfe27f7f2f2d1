// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "absl/strings/str_cat.h"

#include "attention/cuda/device.h"
#include "capi/src/boundary.h"
#include "index/key_index.h"
#include "index/scan/code_scan.h"
#include "index/scan/key_scan.h"
#include "mneme.h"
#include "storage/version.h"

extern "C" {

uint32_t mneme_abi_version(void) {
  return MNEME_ABI_VERSION;
}

const char* mneme_version(void) {
  try {
    static const auto* const text = new std::string(absl::StrCat(
        MNEME_VERSION_STRING, " (faiss ", mneme::FaissVersion(), ", rocksdb ", mneme::RocksDbVersion(), ", rows ",
        mneme::KeyScanKernelName(), ", codes ", mneme::CodeScanKernelName(), ", cuda ", mneme::cuda::Describe(), ")"));
    return text->c_str();
  } catch (...) {
    return MNEME_VERSION_STRING;
  }
}

}  // extern "C"
