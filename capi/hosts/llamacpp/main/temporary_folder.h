#ifndef MNEME_CAPI_HOSTS_LLAMACPP_MAIN_TEMPORARY_FOLDER_H_
#define MNEME_CAPI_HOSTS_LLAMACPP_MAIN_TEMPORARY_FOLDER_H_

#include <stdlib.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "capi/hosts/llamacpp/main/failure.h"

namespace mneme::llama {

// A folder that is removed with all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    path_ = (std::filesystem::temp_directory_path() / "mneme-XXXXXX").string();
    if (mkdtemp(path_.data()) == nullptr) throw Failure("cannot make a folder " + path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace mneme::llama

#endif  // MNEME_CAPI_HOSTS_LLAMACPP_MAIN_TEMPORARY_FOLDER_H_
