#include "index/key_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mneme {
namespace {

constexpr int64_t kLanes = KeyRows::kLanes;
constexpr int64_t kFirstBlocks = 256 / kLanes;
constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;

size_t PageRoundUp(size_t bytes) {
  return (bytes + 4095) & ~size_t{4095};
}

// Memory that costs nothing until it is written.
void* AllocateArena(size_t bytes) {
#if defined(__linux__)
  if (bytes >= kHugePage) {
    bytes = PageRoundUp(bytes);
    // Straight from the kernel: not touched, and given back at once when freed. One huge page more than asked,
    // cut to an aligned piece.
    const size_t mapped = bytes + kHugePage;
    void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    auto* begin = static_cast<char*>(base);
    const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (head > 0) munmap(begin, head);
    if (mapped - head - bytes > 0) munmap(begin + head + bytes, mapped - head - bytes);
    madvise(begin + head, bytes, MADV_HUGEPAGE);  // a wish; kernels without huge pages refuse it
    return begin + head;
  }
#endif
  return ::operator new(bytes, std::align_val_t(kAlignment));
}

void FreeArena(void* arena, size_t bytes) {
#if defined(__linux__)
  if (bytes >= kHugePage) {
    munmap(arena, PageRoundUp(bytes));
    return;
  }
#endif
  static_cast<void>(bytes);
  ::operator delete(arena, std::align_val_t(kAlignment));
}

size_t BlockBytes(DType dtype, int64_t dim) {
  return static_cast<size_t>(kLanes) * RowBytes(dtype, dim);
}

// Bytes of one lane of one dimension are kElement; rows are consecutive in `rows`, `row_bytes` apart.
template <size_t kElement>
void Scatter(const char* rows, size_t row_bytes, int64_t n, int64_t dim, char* block, int64_t lane) {
  for (int64_t d = 0; d < dim; ++d) {
    char* to = block + (d * kLanes + lane) * static_cast<int64_t>(kElement);
    const char* from = rows + d * static_cast<int64_t>(kElement);
    for (int64_t i = 0; i < n; ++i) {
      std::memcpy(to + i * static_cast<int64_t>(kElement), from + i * static_cast<int64_t>(row_bytes), kElement);
    }
  }
}

template <size_t kElement>
void Gather(const char* block, int64_t lane, int64_t dim, char* row) {
  for (int64_t d = 0; d < dim; ++d) {
    std::memcpy(row + d * static_cast<int64_t>(kElement), block + (d * kLanes + lane) * static_cast<int64_t>(kElement),
                kElement);
  }
}

}  // namespace

// Arena 0 has `first` blocks, arena i >= 1 has first * 2^(i-1): block b < first lies in arena 0, any other in
// arena bit_width(b / first). An arena's pointer is published before the size() that covers it.
struct KeyRows::Arenas {
  static constexpr int kMost = 48;

  std::atomic<int64_t> first{0};  // 0: nothing allocated yet
  std::atomic<char*> arena[kMost] = {};
  int used = 0;  // the writer's own

  static int64_t Begin(int64_t first, int i) { return i == 0 ? 0 : first << (i - 1); }
  static int64_t End(int64_t first, int i) { return first << i; }
  static int Find(int64_t first, int64_t block) {
    return block < first ? 0 : static_cast<int>(std::bit_width(static_cast<uint64_t>(block / first)));
  }
};

KeyRows::KeyRows(DType dtype, int64_t dim)
    : dtype_(dtype), dim_(dim), block_bytes_(BlockBytes(dtype, dim)), arenas_(std::make_unique<Arenas>()) {}

KeyRows::~KeyRows() {
  const int64_t first = arenas_->first.load(std::memory_order_relaxed);
  for (int i = 0; i < arenas_->used; ++i) {
    const auto blocks = static_cast<size_t>(Arenas::End(first, i) - Arenas::Begin(first, i));
    FreeArena(arenas_->arena[i].load(std::memory_order_relaxed), std::max<size_t>(blocks * block_bytes_, 1));
  }
}

void KeyRows::Reserve(int64_t rows) {
  const int64_t blocks = (rows + kLanes - 1) / kLanes;
  int64_t first = arenas_->first.load(std::memory_order_relaxed);
  if (blocks <= 0) return;
  if (first == 0) {
    first = std::max(blocks, kFirstBlocks);
    arenas_->first.store(first, std::memory_order_release);
  }
  while (arenas_->used == 0 || Arenas::End(first, arenas_->used - 1) < blocks) {
    const int i = arenas_->used;
    const auto more = static_cast<size_t>(Arenas::End(first, i) - Arenas::Begin(first, i));
    void* memory = AllocateArena(std::max<size_t>(more * block_bytes_, 1));
    arenas_->arena[i].store(static_cast<char*>(memory), std::memory_order_release);
    arenas_->used = i + 1;
  }
}

void KeyRows::Append(const void* encoded_rows, int64_t n) {
  if (n <= 0) return;
  int64_t row = size_.load(std::memory_order_relaxed);
  Reserve(row + n);
  const auto* source = static_cast<const char*>(encoded_rows);
  const size_t row_bytes = RowBytes(dtype_, dim_);
  const int64_t end = row + n;
  while (row < end) {
    int64_t contiguous;
    auto* block = static_cast<char*>(const_cast<void*>(Blocks(row / kLanes, &contiguous)));
    const int64_t lane = row % kLanes;
    const int64_t count = std::min(kLanes - lane, end - row);
    switch (dtype_) {
      case DType::kF32: Scatter<4>(source, row_bytes, count, dim_, block, lane); break;
      case DType::kF16:
      case DType::kBF16: Scatter<2>(source, row_bytes, count, dim_, block, lane); break;
      case DType::kI8: {
        Scatter<1>(source, row_bytes, count, dim_, block, lane);
        char* scales = block + dim_ * kLanes;
        for (int64_t i = 0; i < count; ++i) {
          std::memcpy(scales + (lane + i) * 4, source + i * static_cast<int64_t>(row_bytes) + dim_, 4);
        }
        break;
      }
    }
    source += count * static_cast<int64_t>(row_bytes);
    row += count;
  }
  size_.store(end, std::memory_order_release);
}

void KeyRows::CopyRow(int64_t row, void* encoded_row) const {
  int64_t contiguous;
  const auto* block = static_cast<const char*>(Blocks(row / kLanes, &contiguous));
  const int64_t lane = row % kLanes;
  auto* to = static_cast<char*>(encoded_row);
  switch (dtype_) {
    case DType::kF32: return Gather<4>(block, lane, dim_, to);
    case DType::kF16:
    case DType::kBF16: return Gather<2>(block, lane, dim_, to);
    case DType::kI8:
      Gather<1>(block, lane, dim_, to);
      std::memcpy(to + dim_, block + dim_ * kLanes + lane * 4, 4);
      return;
  }
}

void KeyRows::DecodeRow(int64_t row, float* destination) const {
  int64_t contiguous;
  const auto* block = static_cast<const char*>(Blocks(row / kLanes, &contiguous));
  const int64_t lane = row % kLanes;
  switch (dtype_) {
    case DType::kF32: return Gather<4>(block, lane, dim_, reinterpret_cast<char*>(destination));
    case DType::kF16:
    case DType::kBF16:
      for (int64_t d = 0; d < dim_; ++d) {
        uint16_t bits;
        std::memcpy(&bits, block + (d * kLanes + lane) * 2, 2);
        destination[d] = dtype_ == DType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
      }
      return;
    case DType::kI8: {
      float scale;
      std::memcpy(&scale, block + dim_ * kLanes + lane * 4, 4);
      const auto* codes = reinterpret_cast<const int8_t*>(block);
      for (int64_t d = 0; d < dim_; ++d) destination[d] = scale * static_cast<float>(codes[d * kLanes + lane]);
      return;
    }
  }
}

size_t KeyRows::MemoryBytes() const {
  size_t bytes = sizeof(*this) + sizeof(Arenas);
  const int64_t blocks = (size() + kLanes - 1) / kLanes;
  const int64_t first = arenas_->first.load(std::memory_order_acquire);
  // What has been written, in the pages that the kernel gives for it; arenas not yet reached are not resident.
  for (int i = 0; i < Arenas::kMost && blocks > 0 && Arenas::Begin(first, i) < blocks; ++i) {
    const int64_t begin = Arenas::Begin(first, i);
    const size_t all = static_cast<size_t>(Arenas::End(first, i) - begin) * block_bytes_;
    const size_t written = static_cast<size_t>(std::min(blocks, Arenas::End(first, i)) - begin) * block_bytes_;
    const size_t page = all >= kHugePage ? kHugePage : 4096;
    bytes += std::min((written + page - 1) / page * page, PageRoundUp(all));
  }
  return bytes;
}

const void* KeyRows::Blocks(int64_t block, int64_t* contiguous) const {
  const int64_t first = arenas_->first.load(std::memory_order_acquire);
  const int i = Arenas::Find(first, block);
  *contiguous = Arenas::End(first, i) - block;
  return arenas_->arena[i].load(std::memory_order_acquire) +
         static_cast<size_t>(block - Arenas::Begin(first, i)) * block_bytes_;
}

}  // namespace mneme
