// SPDX-License-Identifier: Apache-2.0
#include "base/scratch.h"

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MNEME_POISONS_SCRATCH
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(MNEME_POISONS_SCRATCH)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes) static_cast<void>(0)
#endif

namespace mneme {
namespace {

constexpr size_t kFirstPiece = size_t{64} << 10;
constexpr size_t kAlignment = 64;

// Memory that is allocated from front to back. AddressSanitizer reports any access to the part that is not allocated.
class Piece {
 public:
  explicit Piece(size_t bytes)
      : data_(static_cast<char*>(::operator new(bytes, std::align_val_t(kAlignment)))), bytes_(bytes) {
    ASAN_POISON_MEMORY_REGION(data_.get(), bytes_);
  }

  size_t bytes() const { return bytes_; }

  // Allocates from offset *used on, and moves *used behind the allocation. Returns: null if there is no room.
  void* Take(size_t bytes, size_t alignment, size_t* used) {
    void* place = data_.get() + *used;
    size_t room = bytes_ - *used;
    if (std::align(alignment, bytes, place, room) == nullptr) return nullptr;
    *used = bytes_ - room + bytes;
    ASAN_UNPOISON_MEMORY_REGION(place, bytes);
    return place;
  }
  // Frees everything from offset `used` on.
  void TakeBack([[maybe_unused]] size_t used) { ASAN_POISON_MEMORY_REGION(data_.get() + used, bytes_ - used); }

 private:
  struct Delete {
    void operator()(char* data) const { ::operator delete(data, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<char, Delete> data_;
  size_t bytes_;
};

struct Pile {
  std::vector<Piece> pieces;
  size_t piece = 0;           // the one that is allocated from; later ones are free
  size_t used = 0;            // bytes of it
  size_t next = kFirstPiece;  // the least size of a new piece
  Scratch* top = nullptr;

  size_t Held() const {
    size_t held = 0;
    for (const Piece& each : pieces) held += each.bytes();
    return held;
  }

  void* Take(size_t bytes, size_t alignment) {
    for (; piece < pieces.size(); ++piece, used = 0) {
      if (void* const taken = pieces[piece].Take(bytes, alignment, &used)) return taken;
    }
    if (bytes > SIZE_MAX / 4) throw std::bad_alloc();
    // Each piece is as large as all before it, so there are few.
    pieces.emplace_back(std::max(bytes + alignment, std::max(next, Held())));
    used = 0;
    return pieces.back().Take(bytes, alignment, &used);
  }

  void TakeBack(size_t to_piece, size_t to_used) {
    for (size_t i = to_piece; i < pieces.size(); ++i) pieces[i].TakeBack(i == to_piece ? to_used : 0);
    piece = to_piece;
    used = to_used;
  }

  // Nothing is in use. If there are several pieces, one large piece will replace them.
  void Tidy() {
    const size_t held = Held();
    if (pieces.size() <= 1 && held <= kMaxScratchKept) return;
    next = std::min(held, kMaxScratchKept);
    pieces.clear();
  }
};

Pile& ThreadPile() {
  thread_local Pile pile;
  return pile;
}

}  // namespace

Scratch::Scratch() : below_(ThreadPile().top), piece_(ThreadPile().piece), used_(ThreadPile().used) {
  ThreadPile().top = this;
}

Scratch::~Scratch() {
  Pile& pile = ThreadPile();
  pile.TakeBack(piece_, used_);
  pile.top = below_;
  if (below_ == nullptr) pile.Tidy();
}

void* Scratch::do_allocate(size_t bytes, size_t alignment) {
  Pile& pile = ThreadPile();
  if (pile.top != this) throw std::logic_error("scratch memory: expected the calling thread's topmost, got another");
  return pile.Take(std::max<size_t>(bytes, 1), alignment);
}

size_t ScratchHeld() {
  return ThreadPile().Held();
}

}  // namespace mneme
