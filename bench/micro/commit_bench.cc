// SPDX-License-Identifier: Apache-2.0
// Bulk append and commit through the ABI, beside the same bytes through a bare RocksDB WriteBatch under the same
// settings, in turn. One iteration writes some blocks of tokens into a new store each.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "mneme.h"
#include "rocksdb/db.h"
#include "rocksdb/write_batch.h"

#include "bench/host.h"
#include "storage/rocks.h"

namespace mneme {
namespace {

// SmolLM2-135M's shape.
constexpr int kLayers = 30, kHeads = 3, kDim = 64;
constexpr int64_t kBlockTokens = 512, kBlocks = 8, kChunkTokens = 256;
constexpr size_t kTokenBytes = size_t{2} * kHeads * kDim * sizeof(uint16_t);  // of one layer, keys and values
constexpr double kBytes = static_cast<double>(kBlocks * kBlockTokens) * kLayers * kTokenBytes;

using mneme::Check;  // of the C ABI

void Check(const rocksdb::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

double SecondsOf(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A block of one layer's keys, or values, in f16: numbers between 1 and 2, none of which repeats a page.
std::vector<uint16_t> Block() {
  std::mt19937 random(1);
  std::vector<uint16_t> rows(static_cast<size_t>(kBlockTokens) * kHeads * kDim);
  for (uint16_t& x : rows) x = static_cast<uint16_t>(0x3c00 | (random() & 0x3ff));
  return rows;
}

double ThroughEngine(const std::vector<uint16_t>& block, mneme_durability durability) {
  const TemporaryFolder folder;
  mneme_store* store = nullptr;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.threads = 1;
  Check(mneme_store_open(folder.path().c_str(), &options, &store));
  mneme_memory* memory = CreateMemory(store, kLayers, kHeads, kHeads, kDim);
  const int64_t shape[] = {kBlockTokens, kHeads, kDim};
  const mneme_tensor tensor = {
      const_cast<uint16_t*>(block.data()), MNEME_DTYPE_F16, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
  const double seconds = SecondsOf([&] {
    for (int64_t done = 0; done < kBlocks; ++done) {
      for (int i = 0; i < kLayers; ++i) {
        mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
        args.layer = i;
        args.keys = args.values = &tensor;
        Check(mneme_memory_append(memory, &args));
      }
      Check(mneme_memory_commit(memory, durability, nullptr));
    }
  });
  Check(mneme_memory_close(memory));
  Check(mneme_store_close(store));
  return seconds;
}

// What a batch outlives the process by: RocksDB's log; or a flush into files, as the engine's chunks do.
enum class Means { kLog, kFlush };

// A batch for each block, of values of the size of the engine's chunks: keys, or values, of one head.
double ThroughWriteBatch(const std::vector<uint16_t>& block, Means means, bool sync) {
  const TemporaryFolder folder;
  const std::shared_ptr<rocksdb::Env> env = MakeEnv(nullptr);
  rocksdb::DBOptions db_options = MakeDbOptions(env.get(), nullptr, nullptr);
  db_options.create_if_missing = db_options.create_missing_column_families = true;
  std::vector<rocksdb::ColumnFamilyHandle*> families;
  rocksdb::DB* raw = nullptr;
  Check(rocksdb::DB::Open(db_options, folder.path(), MakeFamilies(MakeBlockCache()), &families, &raw));
  const std::shared_ptr<RocksHandle> db = RocksHandle::New(env);
  db->Adopt(raw, std::move(families));
  constexpr size_t kChunkBytes = static_cast<size_t>(kChunkTokens) * kDim * sizeof(uint16_t);
  constexpr int64_t kChunks = int64_t{kLayers} * kHeads * 2 * kBlockTokens / kChunkTokens;
  const rocksdb::Slice bytes(reinterpret_cast<const char*>(block.data()), block.size() * sizeof(uint16_t));
  const auto distinct = static_cast<int64_t>(bytes.size() / kChunkBytes);
  return SecondsOf([&] {
    for (int64_t done = 0; done < kBlocks; ++done) {
      rocksdb::WriteBatch batch;
      for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
        char key[32];
        const int size = std::snprintf(key, sizeof(key), "%08lld %08lld", static_cast<long long>(done),
                                       static_cast<long long>(chunk));
        const rocksdb::Slice value(bytes.data() + static_cast<size_t>(chunk % distinct) * kChunkBytes, kChunkBytes);
        Check(batch.Put(db->family(kRowsFamily), rocksdb::Slice(key, static_cast<size_t>(size)), value));
      }
      rocksdb::WriteOptions options;
      options.disableWAL = means == Means::kFlush;
      options.sync = means == Means::kLog && sync;
      Check(db->get()->Write(options, &batch));
      if (means == Means::kFlush) Check(db->get()->Flush(rocksdb::FlushOptions(), db->family(kRowsFamily)));
    }
  });
}

// {1: synced, 0: buffered}. Best times; the ratios are the engine's speed over that of a batch.
void BulkCommit(benchmark::State& state) {
  const bool synced = state.range(0) != 0;
  const std::vector<uint16_t> block = Block();
  double engine = std::numeric_limits<double>::infinity(), log = engine, flush = engine;
  for (auto _ : state) {
    engine = std::min(engine, ThroughEngine(block, synced ? MNEME_DURABILITY_SYNCED : MNEME_DURABILITY_BUFFERED));
    log = std::min(log, ThroughWriteBatch(block, Means::kLog, synced));
    flush = std::min(flush, ThroughWriteBatch(block, Means::kFlush, synced));
  }
  state.counters["engine_MB/s"] = kBytes / engine / 1e6;
  state.counters["batch_log_MB/s"] = kBytes / log / 1e6;
  state.counters["batch_flush_MB/s"] = kBytes / flush / 1e6;
  state.counters["of_batch_log"] = log / engine;
  state.counters["of_batch_flush"] = flush / engine;
}
BENCHMARK(BulkCommit)->Unit(benchmark::kMillisecond)->UseRealTime()->ArgName("synced")->Arg(0)->Arg(1)->Iterations(5);

}  // namespace
}  // namespace mneme
