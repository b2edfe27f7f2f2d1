// SPDX-License-Identifier: Apache-2.0
// A memory whose rows are on disk, as a host sees it through the C ABI: what opening it again costs, what it takes in
// RAM, and what a step costs beside the same memory with all rows in RAM.
//
//   mneme_disk_bench [tokens [folder]]      262,144 tokens of one layer, 8 KV heads, d = 128, f16: 1.35 GB on disk
//
// The page cache is emptied of the store's files by posix_fadvise where "cold" is said. What the kernel was asked to
// read and what it fetched from the device are those of /proc/self/io. Every measurement is a process of its own.

#include <fcntl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "mneme.h"

#include "bench/host.h"
#include "bench/random_floats.h"

namespace mneme {
namespace {

constexpr int kKvHeads = 8, kGroup = 4, kDim = 128, kThreads = 2, kQueryHeads = kKvHeads * kGroup;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of all threads of this process: what a busy machine cannot take away.
double CpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

int64_t ResidentBytes() {
  return ProcField("/proc/self/status", "VmRSS") * 1024;
}

void EmptyPageCache(const std::string& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const int file = open(entry.path().c_str(), O_RDONLY);
    if (file < 0) continue;
    fdatasync(file);
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    close(file);
  }
}

// The device's speed: as many bytes of the store as its codes have, one file after the other.
void ReadFiles(const std::string& folder, int64_t bytes) {
  EmptyPageCache(folder);
  std::vector<char> buffer(size_t{1} << 20);
  int64_t done = 0;
  const double start = Seconds();
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".blob" || done >= bytes) continue;
    const int file = open(entry.path().c_str(), O_RDONLY);
    for (ssize_t n; file >= 0 && (n = read(file, buffer.data(), buffer.size())) > 0;) done += n;
    close(file);
  }
  const double seconds = Seconds() - start;
  std::printf("read as a stream, cold page cache: %.0f MB in %.3f s, %.0f MB/s\n", static_cast<double>(done) / 1e6,
              seconds, static_cast<double>(done) / 1e6 / seconds);
}

// Rows begin all over them.
const std::vector<float>& Numbers() {
  static const std::vector<float> numbers = RandomFloats(size_t{1} << 20, 1);
  return numbers;
}

int64_t CodeBytes(int64_t tokens) {
  return tokens * kKvHeads * (kDim + 4) + tokens / 256 * kKvHeads * 4 * (kDim + 1);
}

void Fill(const std::string& folder, int64_t tokens) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.ram_budget_bytes = 1;
  mneme_store* store;
  Check(mneme_store_open(folder.c_str(), &options, &store));
  mneme_memory* memory = CreateMemory(store, 1, kQueryHeads, kKvHeads, kDim);
  std::mt19937 random(2);
  std::vector<float> keys(size_t{4096} * kKvHeads * kDim), values(keys.size());
  const double start = Seconds();
  double commits = 0;
  for (int64_t done = 0; done < tokens; done += 4096) {
    const int64_t n = std::min<int64_t>(4096, tokens - done);
    for (std::vector<float>* rows : {&keys, &values}) {
      for (size_t at = 0; at < rows->size(); at += kDim) {
        std::copy_n(Numbers().begin() + static_cast<long>(random() % (Numbers().size() - kDim)), kDim,
                    rows->begin() + static_cast<long>(at));
      }
    }
    const int64_t shape[] = {n, kKvHeads, kDim};
    const mneme_tensor key_tensor = {keys.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    const mneme_tensor value_tensor = {values.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
    args.keys = &key_tensor;
    args.values = &value_tensor;
    Check(mneme_memory_append(memory, &args));
    const double commit = Seconds();
    Check(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr));
    commits += Seconds() - commit;
  }
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  Check(mneme_store_get_stats(store, &stats));
  std::printf("filled: %.1f s, commits %.1f s with making the codes; write amplification %.2f, of which codes %.2f\n",
              Seconds() - start, commits,
              static_cast<double>(stats.written_bytes) / static_cast<double>(stats.appended_bytes),
              static_cast<double>(CodeBytes(tokens)) / (static_cast<double>(tokens) * kKvHeads * 4.0 * kDim));
  Check(mneme_memory_close(memory));
  Check(mneme_store_close(store));
}

// An opened memory and a query that changes from step to step.
class Reader {
 public:
  Reader(const std::string& folder, int64_t ram_budget) {
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.mode = MNEME_MODE_READ_ONLY;
    options.threads = kThreads;
    options.ram_budget_bytes = ram_budget;
    Check(mneme_store_open(folder.c_str(), &options, &store_));
    Check(mneme_memory_open(store_, "m", nullptr, &memory_));
  }
  ~Reader() {
    Check(mneme_memory_close(memory_));
    Check(mneme_store_close(store_));
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Seconds.
  double Step(std::vector<float>& query) {
    output_.resize(query.size());
    const int64_t shape[] = {1, kQueryHeads, kDim};
    const mneme_tensor query_tensor = {query.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    const mneme_tensor output_tensor = {output_.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
    args.query = &query_tensor;
    args.output = &output_tensor;
    args.fusion = MNEME_FUSION_MEMORY_ONLY;
    const double start = Seconds();
    Check(mneme_attend(&memory_, 1, &args));
    return Seconds() - start;
  }
  const std::vector<float>& output() const { return output_; }

  mneme_store_stats Stats() const {
    mneme_store_stats stats = MNEME_STORE_STATS_INIT;
    Check(mneme_store_get_stats(store_, &stats));
    return stats;
  }

 private:
  mneme_store* store_ = nullptr;
  mneme_memory* memory_ = nullptr;
  std::vector<float> output_;
};

// Queries of a text: each as like the one before as asked.
class Queries {
 public:
  explicit Queries(double likeness) : likeness_(static_cast<float>(likeness)), query_(kQueryHeads * kDim) {
    for (float& x : query_) x = normal_(random_);
  }
  std::vector<float>& Next() {
    const float news = std::sqrt(1 - likeness_ * likeness_);
    for (float& x : query_) x = likeness_ * x + news * normal_(random_);
    return query_;
  }

 private:
  std::mt19937 random_{7};
  std::normal_distribution<float> normal_;
  const float likeness_;
  std::vector<float> query_;
};

// In a process of its own, so that its memory tells of itself alone.
void Apart(const std::function<void()>& measure) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    measure();
    std::fflush(stdout);
    std::_Exit(0);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) std::exit(1);
}

void Reopen(const std::string& folder, int64_t tokens, bool cold) {
  if (cold) EmptyPageCache(folder);
  Queries queries(0.9);
  std::vector<float>& query = queries.Next();
  const int64_t asked = ProcField("/proc/self/io", "rchar"), fetched = ProcField("/proc/self/io", "read_bytes");
  const double start = Seconds(), cpu_start = CpuSeconds();
  Reader reader(folder, 0);
  const double opened = Seconds() - start;
  const double first = reader.Step(query);
  const auto of_codes = [&](const char* field, int64_t before) {
    return static_cast<double>(ProcField("/proc/self/io", field) - before) / static_cast<double>(CodeBytes(tokens));
  };
  std::printf(
      "reopen, %s page cache: open %.3f s, first attend %.3f s, together %.3f s (%.3f of CPU time on %d threads); read "
      "%.3f of the codes' bytes (from the device %.3f), %lld single rows\n",
      cold ? "cold" : "warm", opened, first, opened + first, CpuSeconds() - cpu_start, kThreads,
      of_codes("rchar", asked), of_codes("read_bytes", fetched), static_cast<long long>(reader.Stats().rows_read));
}

void Memory(const std::string& folder, int64_t tokens) {
  Queries queries(0.9);
  queries.Next();
  const int64_t before = ResidentBytes();
  Reader reader(folder, CodeBytes(tokens) * 21 / 20);
  for (int step = 0; step < 30; ++step) reader.Step(queries.Next());
  const double elements = static_cast<double>(tokens) * kKvHeads * kDim;
  std::printf(
      "rows on disk, codes in RAM, bytes of RAM a token, head and dim: %.3f by mneme_store_stats, %.3f by RSS\n",
      static_cast<double>(reader.Stats().ram_bytes) / elements,
      static_cast<double>(ResidentBytes() - before) / elements);
}

void Compare(const std::string& folder, int64_t tokens, double likeness) {
  Reader disk(folder, CodeBytes(tokens) * 21 / 20), ram(folder, 0);
  Queries queries(likeness);
  // Until all rows have come in that come in.
  for (int64_t read = -1; read != ram.Stats().rows_read;) {
    read = ram.Stats().rows_read;
    for (int step = 0; step < 10; ++step) {
      std::vector<float>& query = queries.Next();
      ram.Step(query);
      disk.Step(query);
    }
  }
  constexpr int kSteps = 40;
  std::vector<double> disk_times, ram_times;
  double disk_cpu = 0, ram_cpu = 0;
  const mneme_store_stats before = disk.Stats(), ram_before = ram.Stats();
  for (int step = 0; step < kSteps; ++step) {
    std::vector<float>& query = queries.Next();
    const double begin = CpuSeconds();
    ram_times.push_back(ram.Step(query));
    const double between = CpuSeconds();
    disk_times.push_back(disk.Step(query));
    ram_cpu += between - begin;
    disk_cpu += CpuSeconds() - between;
    if (disk.output() != ram.output()) {
      std::fprintf(stderr, "step %d: another result from disk\n", step);
      std::exit(1);
    }
  }
  const mneme_store_stats after = disk.Stats(), ram_after = ram.Stats();
  std::vector<double> cold_times;
  for (int step = 0; step < 5; ++step) {
    EmptyPageCache(folder);
    cold_times.push_back(disk.Step(queries.Next()));
  }
  for (std::vector<double>* times : {&disk_times, &ram_times, &cold_times}) std::sort(times->begin(), times->end());
  const auto per_query = [&](int64_t n) { return static_cast<double>(n) / kSteps / kQueryHeads; };
  std::printf(
      "a step, likeness %.1f: rows in RAM %.1f ms (median %.1f), on disk %.1f (%.1f), cold %.1f (%.1f); CPU time %.1f "
      "and "
      "%.1f ms; keys a query: %.0f in RAM, %.0f on disk, rows read %.0f\n",
      likeness, ram_times.front() * 1e3, ram_times[kSteps / 2] * 1e3, disk_times.front() * 1e3,
      disk_times[kSteps / 2] * 1e3, cold_times.front() * 1e3, cold_times[2] * 1e3, ram_cpu / kSteps * 1e3,
      disk_cpu / kSteps * 1e3, per_query(ram_after.reranked_pairs - ram_before.reranked_pairs),
      per_query(after.reranked_pairs - before.reranked_pairs), per_query(after.rows_read - before.rows_read));
}

int Main(int argc, char** argv) {
  const int64_t tokens = argc > 1 ? std::atoll(argv[1]) : 262144;
  std::string folder = argc > 2 ? argv[2] : "";
  std::optional<TemporaryFolder> own;
  if (folder.empty()) folder = own.emplace().path();
  const std::string store = folder + "/store";
  if (!std::filesystem::exists(store)) Apart([&] { Fill(store, tokens); });
  for (int round = 0; round < 2; ++round) {
    Apart([&] { ReadFiles(store, CodeBytes(tokens)); });
    Apart([&] { Reopen(store, tokens, true); });
    Apart([&] { Reopen(store, tokens, false); });
  }
  Apart([&] { Memory(store, tokens); });
  for (const double likeness : {0.9, 0.0}) Apart([&] { Compare(store, tokens, likeness); });
  return 0;
}

}  // namespace
}  // namespace mneme

int main(int argc, char** argv) {
  return mneme::Main(argc, argv);
}
