// SPDX-License-Identifier: Apache-2.0
#include "memory/device/mirror.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace mneme {
namespace {

// Elements of a row on the device: those of kI8 lie apart from their scales.
int64_t ElementsBytes(DType stored, int64_t dim) {
  return dim * static_cast<int64_t>(DTypeSize(stored));
}

int64_t TokenBytesOf(const LayerCard& layer, DType stored) {
  return layer.kv_heads * static_cast<int64_t>(RowBytes(stored, layer.key_dim) + RowBytes(stored, layer.value_dim));
}

cuda::RowsShape ShapeOf(const LayerCard& layer, DType stored, int64_t capacity) {
  return {layer.kv_heads, layer.key_dim, layer.value_dim, static_cast<cuda::ElementType>(stored), capacity};
}

// Rows of all heads of a layer, [heads][n], on their way to the device.
struct Parcel {
  int64_t heads, n, row_bytes;
  int64_t at;  // in the piece of pinned memory
  int64_t bytes() const { return heads * n * row_bytes; }
};

// Rows [row, row + n) of one head, elements to `to` and, of kI8, scales to `scales`.
template <typename Rows>
void Unpack(const Rows& rows, DType stored, int64_t dim, int64_t row, int64_t n, char* to, char* scales) {
  const int64_t each = ElementsBytes(stored, dim);
  for (const int64_t end = row + n; row < end;) {
    int64_t contiguous;
    const char* from = rows.Rows(row, &contiguous);
    const int64_t count = std::min(contiguous, end - row);
    if (stored != DType::kI8) {
      std::memcpy(to, from, static_cast<size_t>(count * each));
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const char* const one = from + i * static_cast<int64_t>(rows.row_bytes());
        std::memcpy(to + i * each, one, static_cast<size_t>(each));
        std::memcpy(scales + i * 4, one + each, 4);
      }
      scales += count * 4;
    }
    to += count * each;
    row += count;
  }
}

}  // namespace

bool MemoryMirror::Fits(const LayerCard& layer, DType stored) {
  return cuda::CheckRowsShape(ShapeOf(layer, stored, 1)).empty() && TokenBytesOf(layer, stored) <= Device::kPieceBytes;
}

absl::StatusOr<std::unique_ptr<MemoryMirror>> MemoryMirror::New(std::shared_ptr<Device> device, const ModelCard& card,
                                                                DType stored, int64_t pinned_tokens) {
  if (std::none_of(card.layers.begin(), card.layers.end(),
                   [&](const LayerCard& layer) { return Fits(layer, stored); })) {
    return nullptr;
  }
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<DeviceStream> stream, DeviceStream::New(*device));
  return std::unique_ptr<MemoryMirror>(
      new MemoryMirror(std::move(device), std::move(stream), card, stored, pinned_tokens));
}

MemoryMirror::MemoryMirror(std::shared_ptr<Device> device, std::shared_ptr<DeviceStream> stream, const ModelCard& card,
                           DType stored, int64_t pinned_tokens)
    : device_(std::move(device)),
      stream_(std::move(stream)),
      cards_(card.layers),
      stored_(stored),
      pinned_(pinned_tokens),
      layers_(card.layers.size()) {}

MemoryMirror::~MemoryMirror() {
  for (const Layer& layer : layers_) {
    if (layer.ready != nullptr) device_->runtime().DeleteEvent(layer.ready);
  }
}

int64_t MemoryMirror::Layer::HeldRows() const {
  int64_t rows = 0;
  for (const std::weak_ptr<const Held>& hold : holds) {
    const std::shared_ptr<const Held> held = hold.lock();
    if (held != nullptr && held->block == block) rows = std::max(rows, held->rows.load());
  }
  return rows;
}

absl::StatusOr<std::shared_ptr<MemoryMirror::Block>> MemoryMirror::NewBlock(size_t layer, int64_t first,
                                                                            int64_t capacity) {
  const LayerCard& card = cards_[layer];
  const int64_t rows = card.kv_heads * capacity;
  const int64_t key_bytes = cuda::RoundUp(rows * ElementsBytes(stored_, card.key_dim), 256);
  const int64_t value_bytes = cuda::RoundUp(rows * ElementsBytes(stored_, card.value_dim), 256);
  const int64_t scale_bytes = stored_ == DType::kI8 ? cuda::RoundUp(rows * 4, 256) : 0;
  auto block = std::make_shared<Block>();
  MNEME_ASSIGN_OR_RETURN(block->memory,
                         DeviceMemory::New(stream_, device_->row_budget(), key_bytes + value_bytes + 2 * scale_bytes));
  char* const data = block->memory->data();
  block->first = first;
  block->rows.capacity = capacity;
  block->rows.keys = data;
  block->rows.values = data + key_bytes;
  if (scale_bytes > 0) {
    block->rows.key_scales = reinterpret_cast<const float*>(data + key_bytes + value_bytes);
    block->rows.value_scales = reinterpret_cast<const float*>(data + key_bytes + value_bytes + scale_bytes);
  }
  return block;
}

absl::Status MemoryMirror::CopyBlock(size_t layer, const Block& from, int64_t from_row, const Block& to, int64_t to_row,
                                     int64_t n) {
  const LayerCard& card = cards_[layer];
  const auto copy = [&](const void* source, const void* target, int64_t row_bytes) {
    return DeviceStatus(device_->runtime().Copy(
        {static_cast<const char*>(source) + from_row * row_bytes, from.rows.capacity * row_bytes,
         static_cast<char*>(const_cast<void*>(target)) + to_row * row_bytes, to.rows.capacity * row_bytes,
         n * row_bytes, card.kv_heads},
        stream_->get()));
  };
  if (n <= 0) return absl::OkStatus();
  MNEME_RETURN_IF_ERROR(copy(from.rows.keys, to.rows.keys, ElementsBytes(stored_, card.key_dim)));
  MNEME_RETURN_IF_ERROR(copy(from.rows.values, to.rows.values, ElementsBytes(stored_, card.value_dim)));
  if (stored_ != DType::kI8) return absl::OkStatus();
  MNEME_RETURN_IF_ERROR(copy(from.rows.key_scales, to.rows.key_scales, 4));
  return copy(from.rows.value_scales, to.rows.value_scales, 4);
}

absl::StatusOr<bool> MemoryMirror::MakeRoom(size_t layer, int64_t kept, int64_t end) {
  Layer& own = layers_[layer];
  const int64_t needed = std::min(end, pinned_) + std::max<int64_t>(0, end - kept);
  // Room to grow into, as far as the budget goes.
  const int64_t capacities[] = {needed + needed / 4 + 1024, needed + needed / 16 + 256, needed + 64};
  const auto new_block = [&]() -> absl::StatusOr<std::shared_ptr<Block>> {
    absl::Status status;
    for (const int64_t capacity : capacities) {
      if (capacity > UINT32_MAX) continue;
      absl::StatusOr<std::shared_ptr<Block>> block = NewBlock(layer, kept, capacity);
      if (block.ok()) return block;
      status = block.status();
      if (!absl::IsResourceExhausted(status)) return status;
    }
    return nullptr;
  };
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Block> made, new_block());
  if (made != nullptr && own.block != nullptr) {
    const Block& old = *own.block;
    const int64_t old_end = old.first + own.rows - pinned_;  // a token, if more than the pinned rows are there
    MNEME_RETURN_IF_ERROR(CopyBlock(layer, old, 0, *made, 0, std::min(own.rows, pinned_)));
    if (own.rows > pinned_) {
      const int64_t taken = std::max<int64_t>(0, old_end - kept);
      MNEME_RETURN_IF_ERROR(CopyBlock(layer, old, RowOf(old, kept), *made, pinned_, taken));
      own.rows = pinned_ + taken;
    }
  } else {
    // The old rows may be what has no room beside the new ones; then they come from the host again.
    own.block.reset();
    own.rows = 0;
    if (made == nullptr) {
      MNEME_ASSIGN_OR_RETURN(made, new_block());
    }
  }
  own.block = std::move(made);
  own.complete_from = kept;
  return own.block != nullptr;
}

absl::Status MemoryMirror::Upload(const MemoryState& state, size_t layer, int64_t begin, int64_t end, int64_t row) {
  const LayerCard& card = cards_[layer];
  const cuda::MemoryRows& to = layers_[layer].block->rows;
  const int64_t heads = card.kv_heads;
  const int64_t key_bytes = ElementsBytes(stored_, card.key_dim), value_bytes = ElementsBytes(stored_, card.value_dim);
  const int64_t scale_bytes = stored_ == DType::kI8 ? 4 : 0;
  const int64_t at_once = Device::kPieceBytes / TokenBytesOf(card, stored_);
  const auto upload = [&](Segment& owner, int64_t first_token, int64_t owner_end) -> absl::Status {
    const int64_t last = std::min(end, owner_end);
    int64_t token = std::max(begin, first_token);
    if (token >= last) return absl::OkStatus();
    MNEME_ASSIGN_OR_RETURN(const auto keys, owner.Keys(layer, last - first_token));
    MNEME_ASSIGN_OR_RETURN(const auto values, owner.Values(layer, last - first_token));
    for (; token < last; token += at_once) {
      const int64_t n = std::min(at_once, last - token);
      const int64_t to_row = row + token - begin;
      Parcel parcels[4] = {
          {heads, n, key_bytes, 0}, {heads, n, value_bytes, 0}, {heads, n, scale_bytes, 0}, {heads, n, scale_bytes, 0}};
      const void* const targets[4] = {to.keys, to.values, to.key_scales, to.value_scales};
      for (int i = 1; i < 4; ++i) parcels[i].at = parcels[i - 1].at + parcels[i - 1].bytes();
      const auto fill = [&](char* piece) {
        for (int64_t head = 0; head < heads; ++head) {
          const auto place = [&](int i) { return piece + parcels[i].at + head * n * parcels[i].row_bytes; };
          Unpack(*keys->heads[static_cast<size_t>(head)], stored_, card.key_dim, token - first_token, n, place(0),
                 place(2));
          Unpack(*values->heads[static_cast<size_t>(head)], stored_, card.value_dim, token - first_token, n, place(1),
                 place(3));
        }
      };
      const auto queue = [&](const char* piece) -> absl::Status {
        for (int i = 0; i < 4; ++i) {
          const Parcel& parcel = parcels[i];
          if (parcel.row_bytes == 0) continue;
          MNEME_RETURN_IF_ERROR(DeviceStatus(
              device_->runtime().Copy({piece + parcel.at, n * parcel.row_bytes,
                                       static_cast<char*>(const_cast<void*>(targets[i])) + to_row * parcel.row_bytes,
                                       to.capacity * parcel.row_bytes, n * parcel.row_bytes, heads},
                                      stream_->get())));
        }
        return absl::OkStatus();
      };
      MNEME_RETURN_IF_ERROR(device_->Stage(parcels[3].at + parcels[3].bytes(), stream_->get(), fill, queue));
    }
    return absl::OkStatus();
  };
  for (const SegmentView& view : state.sealed) {
    MNEME_RETURN_IF_ERROR(upload(*view.segment, view.first_token, view.end()));
  }
  MNEME_RETURN_IF_ERROR(upload(*state.tail, state.tail_first, end));
  device_->counters().copied_rows += end - begin;
  return absl::OkStatus();
}

absl::StatusOr<bool> MemoryMirror::CatchUp(const Snapshot& snapshot, size_t layer, int64_t end) {
  Layer& own = layers_[layer];
  const MemoryState& state = *snapshot.state;
  const int64_t kept = std::max(state.first_kept, pinned_);
  if (own.block != nullptr && kept < own.complete_from) return false;
  const auto taken = [&] {  // where rows that are to come would be written is what others hold
    return own.rows < RowOf(*own.block, end) && own.rows < own.HeldRows();
  };
  if (own.block == nullptr || RowOf(*own.block, end) > own.block->rows.capacity || taken()) {
    MNEME_ASSIGN_OR_RETURN(const bool made, MakeRoom(layer, kept, end));
    if (!made) return false;
  }
  const int64_t wanted = RowOf(*own.block, end);
  if (own.rows >= wanted) return true;
  if (own.rows < pinned_) {
    const int64_t pinned_end = std::min(pinned_, end);
    MNEME_RETURN_IF_ERROR(Upload(state, layer, own.rows, pinned_end, own.rows));
    own.rows = pinned_end;
  }
  if (end > pinned_) {
    int64_t token = own.block->first + own.rows - pinned_;
    if (token < kept) {
      // Evicted before it came: its rows stay hidden.
      own.complete_from = kept;
      token = std::min(kept, end);
    }
    if (token < end) MNEME_RETURN_IF_ERROR(Upload(state, layer, token, end, RowOf(*own.block, token)));
    own.rows = wanted;
  }
  if (own.ready == nullptr) MNEME_RETURN_IF_ERROR(DeviceStatus(device_->runtime().NewEvent(&own.ready)));
  MNEME_RETURN_IF_ERROR(DeviceStatus(device_->runtime().Record(own.ready, stream_->get())));
  return true;
}

absl::StatusOr<std::optional<MemoryMirror::View>> MemoryMirror::Acquire(const Snapshot& snapshot, size_t layer,
                                                                        int64_t begin, int64_t end, void* stream) {
  Layer& own = layers_[layer];
  if (snapshot.state->epoch != epoch_ || !Fits(cards_[layer], stored_)) return std::nullopt;
  const absl::StatusOr<bool> there = CatchUp(snapshot, layer, snapshot.layer_ends[layer]);
  if (!there.ok()) {
    own.block.reset();
    own.rows = 0;
    return there.status();
  }
  if (!*there) return std::nullopt;
  if (own.ready != nullptr) MNEME_RETURN_IF_ERROR(DeviceStatus(device_->runtime().Wait(stream, own.ready)));
  View view;
  view.rows = own.block->rows;
  view.pinned = pinned_;
  view.gap = own.block->first - pinned_;
  view.rows.pinned = pinned_;
  view.rows.kept = RowOf(*own.block, std::max(snapshot.state->first_kept, pinned_));
  view.rows.end = RowOf(*own.block, end);
  view.rows.begin = RowOf(*own.block, begin);
  // Nothing is lost by beginning behind what is hidden.
  if (view.rows.begin >= pinned_) view.rows.begin = std::max(view.rows.begin, view.rows.kept);
  view.rows.begin = std::min(view.rows.begin, view.rows.end);
  return view;
}

absl::Status MemoryMirror::Release(void* event) {
  return DeviceStatus(device_->runtime().Wait(stream_->get(), event));
}

void MemoryMirror::Hold(size_t layer, const View& view, std::shared_ptr<Held>& held) {
  Layer& own = layers_[layer];
  if (held == nullptr || held->block != own.block) {
    held = std::make_shared<Held>();
    held->block = own.block;
    std::erase_if(own.holds, [](const auto& hold) { return hold.expired(); });
    own.holds.push_back(held);
  }
  held->rows = view.rows.end;
}

void MemoryMirror::Follow(const Snapshot& snapshot, size_t layer) {
  MutexLock lock(&mutex_);
  Layer& own = layers_[layer];
  if (own.block == nullptr || snapshot.state->epoch != epoch_) return;
  // Their places may be free again by the time that somebody wants to read them.
  if (own.rows < own.HeldRows()) return;
  const absl::StatusOr<bool> there = CatchUp(snapshot, layer, snapshot.layer_ends[layer]);
  if (there.ok()) return;
  own.block.reset();
  own.rows = 0;
  device_->Failed(there.status());
}

void MemoryMirror::Truncate(int64_t tokens, uint64_t epoch) {
  MutexLock lock(&mutex_);
  epoch_ = epoch;
  for (Layer& layer : layers_) {
    if (layer.block == nullptr) continue;
    if (tokens < layer.complete_from) {
      layer.block.reset();
      layer.rows = 0;
    } else {
      layer.rows = std::min(layer.rows, RowOf(*layer.block, tokens));
    }
  }
}

void MemoryMirror::Forget() {
  for (Layer& layer : layers_) {
    layer.block.reset();
    layer.rows = 0;
  }
}

}  // namespace mneme
