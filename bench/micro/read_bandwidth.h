#ifndef MNEME_BENCH_MICRO_READ_BANDWIDTH_H_
#define MNEME_BENCH_MICRO_READ_BANDWIDTH_H_

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace mneme {

struct Piece {
  const char* data;
  size_t bytes;
};

typedef uint64_t Words __attribute__((vector_size(32)));

// The sum of all words, read as `streams` runs side by side: as little work a byte as reading allows. How many
// runs a core reads fastest differs from machine to machine, so the caller tries. `data` aligned to 32 bytes.
#if defined(__x86_64__)
__attribute__((target("avx2")))
#endif
inline uint64_t
SumWords(const char* data, size_t bytes, size_t streams) {
  const size_t run = bytes / streams / 128 * 128;
  Words sums[4] = {};
  for (size_t i = 0; i < run; i += 128) {
    for (size_t s = 0; s < streams; ++s) {
      const auto* words = reinterpret_cast<const Words*>(data + s * run + i);
      for (size_t j = 0; j < 4; ++j) sums[j] += words[j];
    }
  }
  const Words sum = sums[0] + sums[1] + sums[2] + sums[3];
  return sum[0] + sum[1] + sum[2] + sum[3];
}

// Bytes a second at which `threads` threads read the pieces, each piece by one of them: the best of `rounds`, which
// take 1, 2 and 4 streams in turn. The threads live through all rounds, so that starting them costs nothing.
inline double ReadBandwidth(const std::vector<Piece>& pieces, size_t threads, size_t rounds = 21) {
  using Clock = std::chrono::steady_clock;
  size_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.bytes;
  std::vector<std::atomic<size_t>> next(rounds);
  std::atomic<uint64_t> sum = 0;
  // The clock is read by whoever comes last, before anyone goes on: a thread that wakes late after a meeting would
  // otherwise miss what the others have read meanwhile, and the best of several would be that mistake.
  std::vector<Clock::time_point> meetings;
  meetings.reserve(2 * rounds);
  std::barrier meet(static_cast<std::ptrdiff_t>(threads), [&meetings]() noexcept { meetings.push_back(Clock::now()); });
  const auto read = [&] {
    for (size_t round = 0; round < rounds; ++round) {
      meet.arrive_and_wait();
      uint64_t own = 0;
      for (size_t i = next[round]++; i < pieces.size(); i = next[round]++) {
        own += SumWords(pieces[i].data, pieces[i].bytes, size_t{1} << round % 3);
      }
      sum += own;
      meet.arrive_and_wait();
    }
  };
  std::vector<std::thread> others;
  for (size_t thread = 1; thread < threads; ++thread) others.emplace_back(read);
  read();
  for (std::thread& other : others) other.join();
  double best = 0;
  for (size_t round = 0; round < rounds; ++round) {
    const std::chrono::duration<double> time = meetings[2 * round + 1] - meetings[2 * round];
    best = std::max(best, static_cast<double>(bytes) / time.count());
  }
  return best;
}

// The same of one buffer, in pieces of `piece_bytes`.
inline double ReadBandwidth(const char* data, size_t bytes, size_t threads, size_t rounds = 21,
                            size_t piece_bytes = size_t{1} << 20) {
  std::vector<Piece> pieces;
  for (size_t done = 0; done < bytes; done += piece_bytes) {
    pieces.push_back({data + done, std::min(piece_bytes, bytes - done)});
  }
  return ReadBandwidth(pieces, threads, rounds);
}

}  // namespace mneme

#endif  // MNEME_BENCH_MICRO_READ_BANDWIDTH_H_
