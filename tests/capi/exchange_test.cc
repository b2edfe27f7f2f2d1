// SPDX-License-Identifier: Apache-2.0
// Export and import of memories as safetensors.

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "nlohmann/json.hpp"

#include "tests/capi/testing.h"

namespace mneme {
namespace {

using Json = nlohmann::json;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// A file's parts, as somebody reads them who knows the format alone.
struct Parsed {
  Json header;
  std::string data;

  std::string Tensor(const std::string& name) const {
    const auto offsets = header.at(name).at("data_offsets").get<std::vector<size_t>>();
    return data.substr(offsets[0], offsets[1] - offsets[0]);
  }
};

Parsed Parse(const std::string& bytes) {
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  return {Json::parse(bytes.substr(8, length)), bytes.substr(8 + length)};
}

std::string Format(const std::string& json, const std::string& data) {
  const uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + json + data;
}

std::string Attachments(mneme_memory* memory) {
  struct Context {
    mneme_memory* memory;
    std::string all;
  } context{memory, {}};
  const auto visit = [](void* opaque, const char* name, size_t size, int64_t tokens) {
    Context& seen = *static_cast<Context*>(opaque);
    std::string bytes(size, '?');
    EXPECT_OK(mneme_memory_get_attachment(seen.memory, name, bytes.data(), size, nullptr, nullptr));
    seen.all += std::string(name) + "@" + std::to_string(tokens) + ":" + bytes + ";";
    return 0;
  };
  EXPECT_OK(mneme_memory_list_attachments(memory, visit, &context));
  return context.all;
}

// Rows, positions and ids of all held tokens of both layers, and what an import keeps of the state.
std::string ContentsOf(mneme_memory* memory) {
  const mneme_memory_info info = InfoOf(memory);
  std::string all = std::to_string(info.next_token) + " " + std::to_string(info.first_kept) + " " +
                    std::to_string(info.pinned_tokens) + " " + std::to_string(info.stored_dtype) + " " +
                    std::to_string(info.max_tokens) + " " + std::to_string(info.segment_tokens) + " " +
                    info.model_name + " " + info.weights_fingerprint + " " + info.index + " " + Attachments(memory);
  const auto add = [&](int32_t layer, int64_t begin, int64_t end) {
    if (begin >= end) return;
    Tensor keys({end - begin, kKvHeads, kKeyDim}), values({end - begin, kKvHeads, kValueDim});
    std::vector<int64_t> positions(static_cast<size_t>(end - begin));
    std::vector<int32_t> ids(positions.size());
    mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
    read.layer = layer, read.begin = begin, read.tokens = end - begin;
    read.keys = &keys.view, read.values = &values.view;
    read.positions = positions.data(), read.token_ids = ids.data();
    ASSERT_OK(mneme_memory_read(memory, &read));
    all.append(reinterpret_cast<const char*>(keys.data.data()), keys.data.size() * sizeof(float));
    all.append(reinterpret_cast<const char*>(values.data.data()), values.data.size() * sizeof(float));
    all.append(reinterpret_cast<const char*>(positions.data()), positions.size() * sizeof(int64_t));
    all.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
  };
  for (const int32_t layer : {kLayer, kOtherLayer}) {
    if (info.first_kept <= info.pinned_tokens) {
      add(layer, 0, info.next_token);
    } else {
      add(layer, 0, info.pinned_tokens);
      add(layer, info.first_kept, info.next_token);
    }
  }
  return all;
}

class ExchangeTest : public CapiTest {
 protected:
  std::string File(const std::string& name = "m.safetensors") const { return folder_.path() + "/" + name; }

  mneme_status Export(mneme_memory* memory, const std::string& path, bool overwrite = false,
                      int64_t max_file_bytes = 0) const {
    mneme_memory_export_args args = MNEME_MEMORY_EXPORT_ARGS_INIT;
    args.path = path.c_str();
    args.overwrite = overwrite ? 1 : 0;
    args.max_file_bytes = max_file_bytes;
    return mneme_memory_export(memory, &args);
  }

  mneme_status Import(const std::string& path, const char* name, mneme_memory** memory,
                      const mneme_card* expected = nullptr) const {
    mneme_memory_import_args args = MNEME_MEMORY_IMPORT_ARGS_INIT;
    args.path = path.c_str();
    args.name = name;
    args.expected = expected;
    return mneme_memory_import(store_, &args, memory);
  }

  // The import of a file with these bytes is refused, its message has `part`, and nothing is there afterwards.
  void ExpectNotImported(const std::string& bytes, mneme_status status, const std::string& part) {
    WriteFile(File("bad.safetensors"), bytes);
    mneme_memory* memory = nullptr;
    EXPECT_EQ(Import(File("bad.safetensors"), "bad", &memory), status) << mneme_last_error();
    EXPECT_THAT(mneme_last_error(), ::testing::HasSubstr(part));
    EXPECT_EQ(memory, nullptr);
    EXPECT_EQ(mneme_memory_open(store_, "bad", nullptr, &memory), MNEME_STATUS_NOT_FOUND);
  }

  // Makes everything of "m" whole and committed, with attachments.
  void Complete() {
    ASSERT_OK(AppendTokens(memory_, kOtherLayer, 3, 77));
    const std::string state("state\0with zeros", 16);
    ASSERT_OK(mneme_memory_set_attachment(memory_, "window", state.data(), state.size(), 300));
    ASSERT_OK(mneme_memory_set_attachment(memory_, "empty", "", 0, 0));
    ASSERT_OK(mneme_memory_commit(memory_, MNEME_DURABILITY_BUFFERED, nullptr));
  }

  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
      if (entry.is_regular_file()) names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
};

TEST_F(ExchangeTest, AnImportHoldsWhatWasExported) {
  for (const mneme_dtype dtype : {MNEME_DTYPE_F32, MNEME_DTYPE_F16, MNEME_DTYPE_BF16, MNEME_DTYPE_I8}) {
    for (const int64_t tokens : {0, 1, 255, 700}) {
      for (const int64_t keep : {int64_t{0}, int64_t{90}}) {
        SCOPED_TRACE(std::to_string(dtype) + " " + std::to_string(tokens) + " " + std::to_string(keep));
        mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
        options.stored_dtype = dtype;
        options.segment_tokens = 256;
        options.pinned_tokens = keep > 0 ? 5 : 0;
        options.normalise_keys = 1;
        mneme_memory* memory = NewMemory("one", &options);
        if (tokens > 0) {
          ASSERT_OK(AppendTokens(memory, kLayer, tokens, 3));
          ASSERT_OK(AppendTokens(memory, kOtherLayer, tokens, 4));
          ASSERT_OK(mneme_memory_set_attachment(memory, "half", "12", 2, tokens / 2));
        }
        if (keep > 0) {
          ASSERT_OK(mneme_memory_evict(memory, keep));
        }
        ASSERT_OK(Export(memory, File(), true));  // some of it not committed
        mneme_memory* copy = nullptr;
        ASSERT_OK(Import(File(), "two", &copy));
        EXPECT_EQ(ContentsOf(copy), ContentsOf(memory));
        EXPECT_EQ(InfoOf(copy).tokens_durable, tokens);
        // The copy is a memory as any: it can be exported, which gives the same bytes but for its name, and grows.
        ASSERT_OK(Export(copy, File("copy.safetensors"), true));
        std::string first = ReadFile(File()), second = ReadFile(File("copy.safetensors"));
        Parsed one = Parse(first), two = Parse(second);
        one.header["__metadata__"]["name"] = "two";
        EXPECT_EQ(one.header, two.header);
        EXPECT_TRUE(one.data == two.data);
        ASSERT_OK(AppendTokens(copy, kLayer, 9, 5));
        ASSERT_OK(AppendTokens(copy, kOtherLayer, 9, 6));
        ASSERT_OK(mneme_memory_commit(copy, MNEME_DURABILITY_BUFFERED, nullptr));
        EXPECT_EQ(InfoOf(copy).next_token, tokens + 9);
        EXPECT_OK(mneme_memory_close(memory));
        EXPECT_OK(mneme_memory_close(copy));
        EXPECT_OK(mneme_memory_drop(store_, "one"));
        EXPECT_OK(mneme_memory_drop(store_, "two"));
      }
    }
  }
}

TEST_F(ExchangeTest, AnImportSurvivesItsProcess) {
  Complete();
  ASSERT_OK(Export(memory_, File()));
  const std::string contents = ContentsOf(memory_);
  mneme_memory* copy = nullptr;
  ASSERT_OK(Import(File(), "copy", &copy, card_));
  EXPECT_OK(mneme_memory_close(copy));
  EXPECT_OK(mneme_memory_close(memory_));
  memory_ = nullptr;
  ASSERT_OK(mneme_store_close(store_));
  const mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  ASSERT_OK(mneme_store_open(folder_.store().c_str(), &options, &store_));
  ASSERT_OK(mneme_memory_open(store_, "copy", card_, &copy));
  EXPECT_EQ(ContentsOf(copy), contents);
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  EXPECT_OK(mneme_store_get_stats(store_, &stats));
  EXPECT_EQ(stats.orphans_collected, 0);
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  ASSERT_OK(mneme_store_verify(store_, nullptr, nullptr, &report));
  EXPECT_EQ(report.damaged_values + report.damaged_indexes + report.damaged_memories, 0);
  EXPECT_OK(mneme_memory_close(copy));
}

TEST_F(ExchangeTest, TheFileIsAsTheFormatSays) {
  Complete();
  ASSERT_OK(Export(memory_, File()));
  const Parsed parsed = Parse(ReadFile(File()));
  const Json& metadata = parsed.header.at("__metadata__");
  EXPECT_EQ(metadata.at("format"), "mneme-memory");
  EXPECT_EQ(metadata.at("name"), "m");
  EXPECT_EQ(metadata.at("next_token"), "310");
  EXPECT_EQ(metadata.at("stored_dtype"), "f32");
  const Json card = Json::parse(metadata.at("card").get<std::string>());
  EXPECT_EQ(card.at("layers").at(1).at("layer"), kOtherLayer);
  EXPECT_EQ(card.at("layers").at(0).at("value_dim"), kValueDim);
  EXPECT_EQ(parsed.header.at("layers.7.values").at("shape"), Json({310, kKvHeads, kValueDim}));
  EXPECT_EQ(parsed.header.at("layers.3.keys").at("dtype"), "F32");
  EXPECT_EQ(parsed.Tensor("attachments.1"), std::string("state\0with zeros", 16));
  for (const int32_t layer : {kLayer, kOtherLayer}) {
    Tensor keys({310, kKvHeads, kKeyDim}), values({310, kKvHeads, kValueDim});
    mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
    read.layer = layer, read.tokens = 310, read.keys = &keys.view, read.values = &values.view;
    ASSERT_OK(mneme_memory_read(memory_, &read));
    const auto bytes = [](const Tensor& tensor) {
      return std::string(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size() * sizeof(float));
    };
    const std::string prefix = "layers." + std::to_string(layer);
    EXPECT_TRUE(parsed.Tensor(prefix + ".keys") == bytes(keys));
    EXPECT_TRUE(parsed.Tensor(prefix + ".values") == bytes(values));
  }
  EXPECT_EQ(Files(), (std::vector<std::string>{"m.safetensors"}));
}

TEST_F(ExchangeTest, PositionsAreKept) {
  mneme_memory* memory = NewMemory("p");
  for (const int32_t layer : {kLayer, kOtherLayer}) {
    Tensor keys({3, kKvHeads, kKeyDim}), values({3, kKvHeads, kValueDim});
    keys.Fill(1), values.Fill(2);
    const int64_t positions[] = {-7, 0, int64_t{1} << 40};
    const int32_t ids[] = {5, -1, 2'000'000'000};
    mneme_memory_append_args append = MNEME_MEMORY_APPEND_ARGS_INIT;
    append.layer = layer, append.keys = &keys.view, append.values = &values.view;
    append.positions = positions, append.token_ids = ids;
    ASSERT_OK(mneme_memory_append(memory, &append));
  }
  ASSERT_OK(Export(memory, File()));
  mneme_memory* copy = nullptr;
  ASSERT_OK(Import(File(), "q", &copy));
  EXPECT_EQ(ContentsOf(copy), ContentsOf(memory));
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_memory_close(copy));
}

TEST_F(ExchangeTest, ALargeMemoryHasSeveralFiles) {
  Complete();
  ASSERT_OK(Export(memory_, File(), false, 20'000));
  const std::vector<std::string> files = Files();
  ASSERT_GT(files.size(), 3u);
  EXPECT_EQ(files.front(), "m-00001-of-0000" + std::to_string(files.size() - 1) + ".safetensors");
  EXPECT_EQ(files.back(), "m.safetensors.index.json");
  const Json index = Json::parse(ReadFile(File("m.safetensors.index.json")));
  for (const auto& [tensor, file] : index.at("weight_map").items()) {
    EXPECT_TRUE(Parse(ReadFile(File(file.get<std::string>()))).header.contains(tensor)) << tensor;
  }
  for (const std::string& path : {File(), File("m.safetensors.index.json")}) {
    mneme_memory* copy = nullptr;
    ASSERT_OK(Import(path, "copy", &copy));
    EXPECT_EQ(ContentsOf(copy), ContentsOf(memory_));
    EXPECT_STREQ(InfoOf(copy).name, "copy");
    EXPECT_OK(mneme_memory_close(copy));
    EXPECT_OK(mneme_memory_drop(store_, "copy"));
  }
  EXPECT_EQ(Export(memory_, File(), false, 20'000), MNEME_STATUS_ALREADY_EXISTS);

  // A file of another export, one that lies elsewhere, one that is missing, and one with a tensor that another has.
  mneme_memory* copy = nullptr;
  const std::string first = ReadFile(File(files.front()));
  ASSERT_OK(mneme_memory_truncate(memory_, 300));
  ASSERT_OK(Export(memory_, File("other.safetensors"), false, 20'000));
  WriteFile(File(files.front()), ReadFile(File("other" + files.front().substr(1))));
  EXPECT_EQ(Import(File(), "copy", &copy), MNEME_STATUS_INVALID_ARGUMENT);
  EXPECT_THAT(mneme_last_error(), ::testing::HasSubstr("different exports"));
  WriteFile(File(files.front()), first);
  const auto with_file = [&](const std::string& name) {
    Json changed = index;
    changed["weight_map"]["positions"] = name;
    WriteFile(File("m.safetensors.index.json"), changed.dump());
    return Import(File(), "copy", &copy);
  };
  for (const std::string& name : {std::string("../m.safetensors"), std::string("/etc/passwd"), std::string(".."),
                                  std::string(), std::string("a\0b", 3)}) {
    EXPECT_EQ(with_file(name), MNEME_STATUS_INVALID_ARGUMENT) << name;
    EXPECT_THAT(mneme_last_error(), ::testing::HasSubstr("weight_map"));
  }
  EXPECT_EQ(with_file("none.safetensors"), MNEME_STATUS_NOT_FOUND);
  EXPECT_EQ(with_file(files[1]), MNEME_STATUS_INVALID_ARGUMENT);
  WriteFile(File("m.safetensors.index.json"), index.dump());
  ASSERT_OK(Import(File(), "copy", &copy));
  EXPECT_OK(mneme_memory_close(copy));
}

TEST_F(ExchangeTest, ExportRefuses) {
  mneme_memory_export_args args = MNEME_MEMORY_EXPORT_ARGS_INIT;
  ExpectRefused(mneme_memory_export(memory_, &args), MNEME_STATUS_INVALID_ARGUMENT, "args.path");
  ExpectRefused(mneme_memory_export(memory_, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "args");
  for (const char* name : {"m", "m.safetensor", "m.safetensors/", ".safetensors "}) {
    EXPECT_EQ(Export(memory_, File(name)), MNEME_STATUS_INVALID_ARGUMENT) << name;
  }
  EXPECT_EQ(Export(memory_, ""), MNEME_STATUS_INVALID_ARGUMENT);
  EXPECT_EQ(Export(memory_, File("none/m.safetensors")), MNEME_STATUS_NOT_FOUND);
  args.path = "x.safetensors", args.overwrite = 2;
  ExpectRefused(mneme_memory_export(memory_, &args), MNEME_STATUS_INVALID_ARGUMENT, "args.overwrite");
  args.overwrite = 0, args.max_file_bytes = -1;
  ExpectRefused(mneme_memory_export(memory_, &args), MNEME_STATUS_INVALID_ARGUMENT, "args.max_file_bytes");

  WriteFile(File(), "mine");
  EXPECT_EQ(Export(memory_, File()), MNEME_STATUS_ALREADY_EXISTS);
  EXPECT_EQ(ReadFile(File()), "mine");
  ASSERT_OK(Export(memory_, File(), true));
  EXPECT_NE(ReadFile(File()), "mine");

  mneme_memory* odd = NewMemory("odd\xff");
  EXPECT_EQ(Export(odd, File("odd.safetensors")), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_THAT(mneme_last_error(), ::testing::HasSubstr("UTF-8"));
  EXPECT_OK(mneme_memory_close(odd));
  EXPECT_EQ(Files(), (std::vector<std::string>{"m.safetensors"}));
}

TEST_F(ExchangeTest, ACancelledExportLeavesNoFile) {
  for (const int64_t limit : {int64_t{0}, int64_t{1}, int64_t{30'000}}) {
    mneme_memory_export_args args = MNEME_MEMORY_EXPORT_ARGS_INIT;
    const std::string path = File();
    args.path = path.c_str();
    int64_t stop = limit;
    args.context = &stop;
    args.progress = [](void* at, int64_t done, int64_t total) {
      EXPECT_LE(done, total);
      return done > *static_cast<int64_t*>(at) ? 1 : 0;
    };
    EXPECT_EQ(mneme_memory_export(memory_, &args), MNEME_STATUS_CANCELLED);
    EXPECT_TRUE(Files().empty());
  }
}

TEST_F(ExchangeTest, AFullDiskLeavesNoFile) {
  // What a process may write is limited in place of the disk.
  if (ChildArgument() != nullptr) {
    const struct rlimit limit = {20'000, 20'000};
    signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    EXPECT_EQ(Export(memory_, File()), MNEME_STATUS_RESOURCE_EXHAUSTED) << mneme_last_error();
    EXPECT_TRUE(Files().empty());
    _exit(HasFailure() ? 1 : 0);
  }
  EXPECT_EQ(WaitFor(SpawnThisTest("limited")), 0);
}

TEST_F(ExchangeTest, ACancelledImportLeavesNothing) {
  Complete();
  ASSERT_OK(Export(memory_, File()));
  mneme_store_stats before = MNEME_STORE_STATS_INIT;
  EXPECT_OK(mneme_store_get_stats(store_, &before));
  for (const int64_t limit : {int64_t{0}, int64_t{1'000}, int64_t{60'000}}) {
    mneme_memory_import_args args = MNEME_MEMORY_IMPORT_ARGS_INIT;
    const std::string path = File();
    args.path = path.c_str(), args.name = "copy";
    int64_t stop = limit;
    args.context = &stop;
    args.progress = [](void* at, int64_t done, int64_t) { return done > *static_cast<int64_t*>(at) ? 1 : 0; };
    mneme_memory* copy = nullptr;
    EXPECT_EQ(mneme_memory_import(store_, &args, &copy), MNEME_STATUS_CANCELLED);
    EXPECT_EQ(copy, nullptr);
    EXPECT_EQ(mneme_memory_open(store_, "copy", nullptr, &copy), MNEME_STATUS_NOT_FOUND);
  }
  EXPECT_OK(mneme_memory_close(memory_));
  memory_ = nullptr;
  ASSERT_OK(mneme_store_close(store_));
  const mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  ASSERT_OK(mneme_store_open(folder_.store().c_str(), &options, &store_));
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  EXPECT_OK(mneme_store_get_stats(store_, &stats));
  EXPECT_EQ(stats.orphans_collected, 0) << "a cancelled import must delete what it has written";
}

TEST_F(ExchangeTest, AKilledImportLeavesNothing) {
  Complete();
  ASSERT_OK(Export(memory_, File()));
  const std::string path = File();
  if (ChildArgument() != nullptr) {
    // The child has a store of its own, in the parent's folder.
    mneme_store* store = nullptr;
    const mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    ASSERT_OK(mneme_store_open((std::string(ChildArgument()) + "/killed").c_str(), &options, &store));
    mneme_memory_import_args args = MNEME_MEMORY_IMPORT_ARGS_INIT;
    args.path = path.c_str();
    args.progress = [](void*, int64_t done, int64_t total) {
      if (done >= total) _exit(7);  // all rows are written, nothing is committed
      return 0;
    };
    mneme_memory* copy = nullptr;
    mneme_memory_import(store, &args, &copy);
    _exit(1);
  }
  ASSERT_EQ(WaitFor(SpawnThisTest(folder_.path())), 7);
  mneme_store* store = nullptr;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.must_exist = 1;
  ASSERT_OK(mneme_store_open((folder_.path() + "/killed").c_str(), &options, &store));
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  EXPECT_OK(mneme_store_get_stats(store, &stats));
  EXPECT_EQ(stats.memories, 0);
  mneme_memory* copy = nullptr;
  mneme_memory_import_args args = MNEME_MEMORY_IMPORT_ARGS_INIT;
  args.path = path.c_str();
  ASSERT_OK(mneme_memory_import(store, &args, &copy));
  EXPECT_EQ(ContentsOf(copy), ContentsOf(memory_));
  EXPECT_OK(mneme_memory_close(copy));
  EXPECT_OK(mneme_store_close(store));
}

TEST_F(ExchangeTest, ImportRefusesWhatDoesNotFit) {
  Complete();
  ASSERT_OK(Export(memory_, File()));
  mneme_memory* copy = nullptr;
  mneme_memory_import_args args = MNEME_MEMORY_IMPORT_ARGS_INIT;
  ExpectRefused(mneme_memory_import(store_, &args, &copy), MNEME_STATUS_INVALID_ARGUMENT, "args.path");
  EXPECT_EQ(Import(File(), nullptr, &copy), MNEME_STATUS_ALREADY_EXISTS);  // "m" is there
  EXPECT_EQ(Import(File(), "", &copy), MNEME_STATUS_INVALID_ARGUMENT);
  EXPECT_EQ(Import(File(), std::string(256, 'n').c_str(), &copy), MNEME_STATUS_INVALID_ARGUMENT);
  EXPECT_EQ(Import(File("none.safetensors"), "copy", &copy), MNEME_STATUS_NOT_FOUND);
  EXPECT_EQ(Import(folder_.path(), "copy", &copy), MNEME_STATUS_INVALID_ARGUMENT);
  ASSERT_EQ(mkfifo(File("fifo.safetensors").c_str(), 0600), 0);
  EXPECT_EQ(Import(File("fifo.safetensors"), "copy", &copy), MNEME_STATUS_INVALID_ARGUMENT);
  mneme_card* other = NewCard("another model");
  EXPECT_EQ(Import(File(), "copy", &copy, other), MNEME_STATUS_FAILED_PRECONDITION);
  mneme_card_release(other);
  EXPECT_EQ(copy, nullptr);

  mneme_store* reader = nullptr;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.mode = MNEME_MODE_READ_ONLY;
  ASSERT_OK(mneme_store_open(folder_.store().c_str(), &options, &reader));
  const std::string path = File();
  args.path = path.c_str(), args.name = "copy";
  EXPECT_EQ(mneme_memory_import(reader, &args, &copy), MNEME_STATUS_FAILED_PRECONDITION);
  // A reader can export.
  mneme_memory* same = nullptr;
  ASSERT_OK(mneme_memory_open(reader, "m", nullptr, &same));
  ASSERT_OK(Export(same, File("reader.safetensors")));
  EXPECT_TRUE(ReadFile(File("reader.safetensors")) == ReadFile(File()));
  EXPECT_OK(mneme_memory_close(same));
  EXPECT_OK(mneme_store_close(reader));
}

TEST_F(ExchangeTest, ImportRespectsTheDiskBudget) {
  Complete();
  ASSERT_OK(Export(memory_, File()));
  mneme_store* store = nullptr;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.disk_budget_bytes = 20'000;
  ASSERT_OK(mneme_store_open((folder_.path() + "/small").c_str(), &options, &store));
  const std::string path = File();
  mneme_memory_import_args args = MNEME_MEMORY_IMPORT_ARGS_INIT;
  args.path = path.c_str();
  mneme_memory* copy = nullptr;
  EXPECT_EQ(mneme_memory_import(store, &args, &copy), MNEME_STATUS_RESOURCE_EXHAUSTED);
  EXPECT_OK(mneme_store_close(store));
}

TEST_F(ExchangeTest, ImportRefusesMalformedFiles) {
  Complete();
  ASSERT_OK(Export(memory_, File()));
  const std::string whole = ReadFile(File());
  const Parsed parsed = Parse(whole);
  ExpectNotImported("", MNEME_STATUS_INVALID_ARGUMENT, "header");
  ExpectNotImported("1234567", MNEME_STATUS_INVALID_ARGUMENT, "header");
  ExpectNotImported(std::string(8, '\xff'), MNEME_STATUS_INVALID_ARGUMENT, "header");
  ExpectNotImported(whole.substr(0, whole.size() - 1), MNEME_STATUS_INVALID_ARGUMENT, "behind the header");
  ExpectNotImported(whole + "x", MNEME_STATUS_INVALID_ARGUMENT, "behind the header");
  ExpectNotImported(Format("[]", ""), MNEME_STATUS_INVALID_ARGUMENT, "object");
  ExpectNotImported(Format("{\"a\":1,\"a\":2}", ""), MNEME_STATUS_INVALID_ARGUMENT, "twice");
  ExpectNotImported(Format("{\"a\":", ""), MNEME_STATUS_INVALID_ARGUMENT, "JSON");
  ExpectNotImported(Format(std::string(100'000, '['), ""), MNEME_STATUS_INVALID_ARGUMENT, "depth");
  ExpectNotImported(Format("{}", ""), MNEME_STATUS_INVALID_ARGUMENT, "mneme-memory");

  const auto changed = [&](const std::function<void(Json&)>& change) {
    Json header = parsed.header;
    change(header);
    return Format(header.dump(), parsed.data);
  };
  const auto metadata = [&](const std::string& name, const Json& value) {
    return changed([&](Json& header) { header["__metadata__"][name] = value; });
  };
  struct {
    std::string file;
    std::string part;
  } cases[] = {
      {changed([](Json& h) { h.erase("__metadata__"); }), "mneme-memory"},
      {changed([](Json& h) { h["__metadata__"].erase("card"); }), "card"},
      {changed([](Json& h) { h["positions"]["dtype"] = "F64"; }), "positions"},
      {changed([](Json& h) { h["positions"]["dtype"] = 3; }), "positions"},
      {changed([](Json& h) { h["positions"]["shape"] = {309}; }), "positions"},
      {changed([](Json& h) { h["positions"]["shape"] = {-1}; }), "positions"},
      {changed([](Json& h) { h["positions"]["shape"] = {1e30}; }), "positions"},
      {changed([](Json& h) {
         h["positions"]["shape"] = {int64_t{1} << 62, 8};
       }),
       "positions"},
      {changed([](Json& h) {
         h["positions"]["data_offsets"] = {8, 0};
       }),
       "positions"},
      {changed([](Json& h) { h["positions"]["data_offsets"] = {0}; }), "positions"},
      {changed([](Json& h) {
         h["token_ids"]["data_offsets"] = {2472, 3712};
       }),
       "token_ids"},
      {changed([](Json& h) {
         h["extra"] = {{"dtype", "U8"}, {"shape", {0}}, {"data_offsets", {0, 0}}};
       }),
       "extra"},
      {changed([](Json& h) {
         h["layers.3.keys"]["shape"] = {310, kKvHeads * kKeyDim};
       }),
       "layers.3.keys"},
      {changed([](Json& h) {
         h["layers.3.keys"]["shape"] = {310, kKeyDim, kKvHeads};
       }),
       "layers.3.keys"},
      {changed([](Json& h) { h["x"] = h["positions"], h.erase("positions"); }), "positions"},
      {metadata("format", "pt"), "mneme-memory"},
      {metadata("stored_dtype", "f64"), "stored_dtype"},
      {metadata("stored_dtype", "f16"), "layers.3.keys"},
      {metadata("keys_rotated", "1"), "keys_rotated"},
      {metadata("pinned_tokens", "-1"), "pinned_tokens"},
      {metadata("segment_tokens", "100"), "segment_tokens"},
      {metadata("segment_tokens", "99999999999999999999"), "segment_tokens"},
      {metadata("max_tokens", "ten"), "max_tokens"},
      {metadata("next_token", "311"), "positions"},
      {metadata("first_kept", "311"), "first_kept"},
      {metadata("model_name", std::string("a\0b", 3)), "model_name"},
      {metadata("name", ""), "name"},
      {metadata("name", 3), "name"},
      {metadata("card", "{\"layers\": []}"), "card"},
      {metadata("card", "{\"layers\": [{\"layer\": 3}]}"), "card"},
      {metadata("card", "nonsense"), "card"},
      {metadata("attachments", "{\"attachments\": 1}"), "attachments"},
      {metadata("checksums", "{\"positions\": \"0\"}"), "checksums"},
      {metadata("index", "nonsense"), "nonsense"},
  };
  for (const auto& [file, part] : cases) {
    SCOPED_TRACE(part);
    ExpectNotImported(file, MNEME_STATUS_INVALID_ARGUMENT, part);
  }
  ExpectNotImported(metadata("format_version", "2"), MNEME_STATUS_FAILED_PRECONDITION, "another mneme");
}

TEST_F(ExchangeTest, ImportRefusesDamagedAndUnfitNumbers) {
  Complete();
  ASSERT_OK(Export(memory_, File()));
  const Parsed parsed = Parse(ReadFile(File()));
  Json unsure = parsed.header;  // as another program would write it, without checksums
  unsure["__metadata__"].erase("checksums");
  const auto with = [&](const std::string& tensor, size_t offset, auto number) {
    std::string data = parsed.data;
    const auto begin = parsed.header.at(tensor).at("data_offsets").at(0).get<size_t>();
    std::memcpy(data.data() + begin + offset, &number, sizeof(number));
    return data;
  };
  const std::string changed = with("layers.7.values", 400, 0.25f);
  ExpectNotImported(Format(parsed.header.dump(), changed), MNEME_STATUS_DATA_LOSS, "layers.7.values");
  mneme_memory* memory = nullptr;
  WriteFile(File("new.safetensors"), Format(unsure.dump(), changed));
  ASSERT_OK(Import(File("new.safetensors"), "new", &memory));
  EXPECT_NE(ContentsOf(memory), ContentsOf(memory_));
  EXPECT_OK(mneme_memory_close(memory));
  for (const float number : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    ExpectNotImported(Format(unsure.dump(), with("layers.3.keys", 8000, number)), MNEME_STATUS_INVALID_ARGUMENT,
                      "layers.3.keys");
  }
  ExpectNotImported(Format(unsure.dump(), with("positions", 80, int64_t{1} << 50)), MNEME_STATUS_INVALID_ARGUMENT,
                    "positions");
}

TEST_F(ExchangeTest, NoBrokenFileHarmsTheStore) {
  Complete();
  ASSERT_OK(Export(memory_, File()));
  const std::string whole = ReadFile(File());
  const std::string contents = ContentsOf(memory_);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data(), sizeof(header_bytes));
  std::mt19937 random(20261201);
  int imported = 0;
  for (int round = 0; round < 400; ++round) {
    std::string bytes = whole;
    const size_t limit = round % 4 == 0 ? bytes.size() : static_cast<size_t>(header_bytes) + 8;
    for (int change = 1 + static_cast<int>(random() % 3); change > 0; --change) {
      bytes[random() % limit] = static_cast<char>(random());
    }
    if (round % 7 == 0) bytes.resize(random() % bytes.size());
    WriteFile(File("broken.safetensors"), bytes);
    mneme_memory* memory = nullptr;
    const mneme_status status = Import(File("broken.safetensors"), "broken", &memory);
    if (status != MNEME_OK) {
      EXPECT_TRUE(status == MNEME_STATUS_INVALID_ARGUMENT || status == MNEME_STATUS_DATA_LOSS ||
                  status == MNEME_STATUS_FAILED_PRECONDITION)
          << status << ": " << mneme_last_error();
      EXPECT_EQ(memory, nullptr);
      continue;
    }
    ++imported;  // texts and numbers of the metadata have no checksum; rows have
    EXPECT_OK(mneme_memory_close(memory));
    EXPECT_OK(mneme_memory_drop(store_, "broken"));
  }
  EXPECT_LT(imported, 300);
  EXPECT_EQ(ContentsOf(memory_), contents);
}

TEST_F(ExchangeTest, AnExportBesideAWriterHoldsWholeTokensOfOneMoment) {
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.segment_tokens = 256;
  mneme_memory* memory = NewMemory("busy", &options);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (uint32_t seed = 1; !stop; ++seed) {
      ASSERT_OK(AppendTokens(memory, kLayer, 37, 7));
      ASSERT_OK(AppendTokens(memory, kOtherLayer, 37, 7));
      if (seed % 3 == 0) {
        ASSERT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr));
      }
      if (seed % 20 == 0) {
        ASSERT_OK(mneme_memory_evict(memory, 500));
      }
    }
  });
  for (int round = 0; round < 10; ++round) {
    ASSERT_OK(Export(memory, File(), true));
    mneme_memory* copy = nullptr;
    ASSERT_OK(Import(File(), "copy", &copy));
    EXPECT_EQ(InfoOf(copy).next_token % 37, 0);
    EXPECT_FALSE(ContentsOf(copy).empty());
    EXPECT_OK(mneme_memory_close(copy));
    EXPECT_OK(mneme_memory_drop(store_, "copy"));
  }
  stop = true;
  writer.join();
  EXPECT_OK(mneme_memory_close(memory));
}

}  // namespace
}  // namespace mneme
