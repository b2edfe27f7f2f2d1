// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BENCH_MICRO_READ_BANDWIDTH_H_
#define MNEME_BENCH_MICRO_READ_BANDWIDTH_H_

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <utility>
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

// Rounds of reading the pieces, each piece by one of `threads` threads, with 1, 2 and 4 runs side by side in turn. The
// threads live from round to round and sleep in between, so that rounds can be had by turns with what they are compared
// to: the bandwidth of a shared machine changes within seconds.
class ReadRounds {
 public:
  // sets: each round reads one of so many equal sets of the pieces, one after another. Where together they are far
  // greater than the caches, none of a set is in them when its turn comes.
  ReadRounds(std::vector<Piece> pieces, size_t threads, size_t sets = 1)
      : pieces_(std::move(pieces)),
        sets_(sets),
        set_pieces_(pieces_.size() / sets),
        meet_(static_cast<std::ptrdiff_t>(threads), Clock{&meetings_}) {
    for (size_t i = 0; i < set_pieces_; ++i) bytes_ += pieces_[i].bytes;
    meetings_.reserve(4096);
    for (size_t thread = 1; thread < threads; ++thread) {
      others_.emplace_back([this] {
        for (size_t round = 0; Read(round); ++round) {
        }
      });
    }
  }
  ~ReadRounds() {
    stopping_ = true;
    Read(rounds_);
    for (std::thread& other : others_) other.join();
  }
  ReadRounds(const ReadRounds&) = delete;
  ReadRounds& operator=(const ReadRounds&) = delete;

  void Round() {
    next_ = 0;
    Read(rounds_++);
    const std::chrono::duration<double> time = meetings_[1] - meetings_[0];
    meetings_.clear();
    seconds_[(rounds_ - 1) % kStreams].push_back(time.count());
  }

  // Bytes a second in the best round, and in the median one of the number of runs that did best.
  double Best() const {
    return Bandwidth([](const std::vector<double>& sorted) { return sorted.front(); });
  }
  double Median() const {
    return Bandwidth([](const std::vector<double>& sorted) { return sorted[sorted.size() / 2]; });
  }

 private:
  static constexpr size_t kStreams = 3;

  // Read by whoever comes last to a meeting, before anyone goes on: a thread that wakes late after it would otherwise
  // miss what the others have read meanwhile, and the best of several would be that mistake.
  struct Clock {
    std::vector<std::chrono::steady_clock::time_point>* meetings;
    void operator()() noexcept { meetings->push_back(std::chrono::steady_clock::now()); }
  };

  bool Read(size_t round) {
    meet_.arrive_and_wait();
    if (stopping_) return false;
    uint64_t own = 0;
    const Piece* const pieces = pieces_.data() + round % sets_ * set_pieces_;
    for (size_t i = next_++; i < set_pieces_; i = next_++) {
      own += SumWords(pieces[i].data, pieces[i].bytes, size_t{1} << round % kStreams);
    }
    sum_ += own;
    meet_.arrive_and_wait();
    return true;
  }

  template <typename Which>
  double Bandwidth(const Which& which) const {
    double best = 0;
    for (std::vector<double> seconds : seconds_) {
      if (seconds.empty()) continue;
      std::sort(seconds.begin(), seconds.end());
      best = std::max(best, static_cast<double>(bytes_) / which(seconds));
    }
    return best;
  }

  const std::vector<Piece> pieces_;
  const size_t sets_;
  const size_t set_pieces_;
  size_t bytes_ = 0;  // of a set
  size_t rounds_ = 0;
  std::vector<double> seconds_[kStreams];
  std::atomic<size_t> next_ = 0;
  std::atomic<uint64_t> sum_ = 0;
  std::atomic<bool> stopping_ = false;
  std::vector<std::chrono::steady_clock::time_point> meetings_;
  std::barrier<Clock> meet_;
  std::vector<std::thread> others_;
};

// Bytes a second at which `threads` threads read the pieces: the best of `rounds`.
inline double ReadBandwidth(const std::vector<Piece>& pieces, size_t threads, size_t rounds = 21) {
  ReadRounds reading(pieces, threads);
  for (size_t round = 0; round < rounds; ++round) reading.Round();
  return reading.Best();
}

// A buffer in pieces.
inline std::vector<Piece> CutInPieces(const char* data, size_t bytes, size_t piece_bytes = size_t{1} << 20) {
  std::vector<Piece> pieces;
  for (size_t done = 0; done < bytes; done += piece_bytes) {
    pieces.push_back({data + done, std::min(piece_bytes, bytes - done)});
  }
  return pieces;
}

// The same of one buffer.
inline double ReadBandwidth(const char* data, size_t bytes, size_t threads, size_t rounds = 21) {
  return ReadBandwidth(CutInPieces(data, bytes), threads, rounds);
}

// Rounds that read `bytes` of a buffer, which is kept from one benchmark to the next, as whoever reads as many codes
// finds them: from so many on out of RAM alone, not out of what caches have kept of the round before.
inline ReadRounds ReadingOf(size_t bytes, size_t threads) {
  constexpr size_t kCold = size_t{32} << 20;
  constexpr size_t kPieceBytes = size_t{1} << 18;
  static std::vector<Words> buffer;
  const size_t sets = bytes < kCold || bytes > 16 * kCold ? 1 : 4;
  const size_t set_bytes = std::max(bytes / kPieceBytes, size_t{1}) * kPieceBytes;
  buffer.resize(sets * set_bytes / sizeof(Words), Words{1, 1, 1, 1});
  return ReadRounds(CutInPieces(reinterpret_cast<const char*>(buffer.data()), sets * set_bytes, kPieceBytes), threads,
                    sets);
}

}  // namespace mneme

#endif  // MNEME_BENCH_MICRO_READ_BANDWIDTH_H_
