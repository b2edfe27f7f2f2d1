// SPDX-License-Identifier: Apache-2.0
#include "memory/device/mirror.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace mneme {
namespace {

constexpr int64_t kScaleBytes = sizeof(float);  // of a kI8 row

// Returns: bytes of a row on the device, where the scales of kI8 rows lie apart from their elements.
int64_t ElementsBytes(DType stored, int64_t dim) {
  return dim * static_cast<int64_t>(DTypeSize(stored));
}

int64_t TokenBytesOf(const LayerCard& layer, DType stored) {
  return layer.kv_heads * static_cast<int64_t>(RowBytes(stored, layer.key_dim) + RowBytes(stored, layer.value_dim));
}

cuda::RowsShape ShapeOf(const LayerCard& layer, DType stored, int64_t capacity) {
  return {layer.kv_heads, layer.key_dim, layer.value_dim, stored, capacity};
}

// Copies rows [row, row + n) of one head to `to`. The scales of kI8 rows go to `scales`.
template <typename Rows>
void CopyToSlot(const Rows& rows, DType stored, int64_t dim, int64_t row, int64_t n, char* to, char* scales) {
  const int64_t element_bytes = ElementsBytes(stored, dim);
  for (const int64_t end = row + n; row < end;) {
    int64_t contiguous;
    const char* from = rows.Rows(row, &contiguous);
    const int64_t count = std::min(contiguous, end - row);
    if (stored != DType::kI8) {
      std::memcpy(to, from, static_cast<size_t>(count * element_bytes));
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const char* const one = from + i * static_cast<int64_t>(rows.row_bytes());
        std::memcpy(to + i * element_bytes, one, static_cast<size_t>(element_bytes));
        std::memcpy(scales + i * kScaleBytes, one + element_bytes, kScaleBytes);
      }
      scales += count * kScaleBytes;
    }
    to += count * element_bytes;
    row += count;
  }
}

}  // namespace

bool MemoryMirror::Supports(const LayerCard& layer, DType stored) {
  return cuda::CheckRowsShape(ShapeOf(layer, stored, 1)).empty() &&
         TokenBytesOf(layer, stored) <= StagingRing::kSlotBytes;
}

absl::StatusOr<std::unique_ptr<MemoryMirror>> MemoryMirror::New(std::shared_ptr<Device> device, const ModelCard& card,
                                                                DType stored, int64_t pinned_tokens) {
  if (std::none_of(card.layers.begin(), card.layers.end(),
                   [&](const LayerCard& layer) { return Supports(layer, stored); })) {
    return nullptr;
  }
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<DeviceStream> stream, DeviceStream::New(device->runtime()));
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
  for (const std::weak_ptr<const RowHold>& hold : holds) {
    const std::shared_ptr<const RowHold> held = hold.lock();
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
  const int64_t scale_bytes = stored_ == DType::kI8 ? cuda::RoundUp(rows * kScaleBytes, 256) : 0;
  auto block = std::make_shared<Block>();
  MNEME_ASSIGN_OR_RETURN(block->buffer,
                         DeviceBuffer::New(stream_, device_->row_budget(), key_bytes + value_bytes + 2 * scale_bytes));
  char* const data = block->buffer->data();
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
  MNEME_RETURN_IF_ERROR(copy(from.rows.key_scales, to.rows.key_scales, kScaleBytes));
  return copy(from.rows.value_scales, to.rows.value_scales, kScaleBytes);
}

absl::StatusOr<std::shared_ptr<MemoryMirror::Block>> MemoryMirror::NewBlockFor(size_t layer, int64_t first,
                                                                               int64_t needed) {
  for (const int64_t capacity : {needed + needed / 4 + 1024, needed + needed / 16 + 256, needed + 64}) {
    if (capacity > UINT32_MAX) continue;
    absl::StatusOr<std::shared_ptr<Block>> block = NewBlock(layer, first, capacity);
    if (block.ok() || !absl::IsResourceExhausted(block.status())) return block;
  }
  return nullptr;
}

absl::StatusOr<bool> MemoryMirror::ReplaceBlock(size_t layer, int64_t kept, int64_t end) {
  Layer& own = layers_[layer];
  const int64_t needed = std::min(end, pinned_) + std::max<int64_t>(0, end - kept);
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Block> made, NewBlockFor(layer, kept, needed));
  if (made != nullptr && own.block != nullptr) {
    const Block& old = *own.block;
    const int64_t old_end = old.first + own.rows - pinned_;  // a token, if the block has more than the pinned rows
    MNEME_RETURN_IF_ERROR(CopyBlock(layer, old, 0, *made, 0, std::min(own.rows, pinned_)));
    if (own.rows > pinned_) {
      const int64_t taken = std::max<int64_t>(0, old_end - kept);
      MNEME_RETURN_IF_ERROR(CopyBlock(layer, old, RowOf(old, kept), *made, pinned_, taken));
      own.rows = pinned_ + taken;
    }
  } else {
    // The budget may have room for the new block without the old one. Then all rows come from the host again.
    own.Drop();
    if (made == nullptr) {
      MNEME_ASSIGN_OR_RETURN(made, NewBlockFor(layer, kept, needed));
    }
  }
  own.block = std::move(made);
  own.complete_from = kept;
  return own.block != nullptr;
}

absl::Status MemoryMirror::UploadFrom(Segment& owner, int64_t first_token, int64_t owner_end, size_t layer,
                                      int64_t begin, int64_t end, int64_t row) {
  const LayerCard& card = cards_[layer];
  const cuda::MemoryRows& block = layers_[layer].block->rows;
  const int64_t heads = card.kv_heads;
  const int64_t last = std::min(end, owner_end);
  int64_t token = std::max(begin, first_token);
  if (token >= last) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(const auto keys, owner.Keys(layer, last - first_token));
  MNEME_ASSIGN_OR_RETURN(const auto values, owner.Values(layer, last - first_token));
  const int64_t scale_bytes = stored_ == DType::kI8 ? kScaleBytes : 0;
  // What goes to the device apart, and how many bytes of a row it takes: key elements, value elements, key scales,
  // value scales. In a slot of the staging ring each is [heads][n].
  const int64_t row_bytes[4] = {ElementsBytes(stored_, card.key_dim), ElementsBytes(stored_, card.value_dim),
                                scale_bytes, scale_bytes};
  const void* const targets[4] = {block.keys, block.values, block.key_scales, block.value_scales};
  for (const int64_t slot_tokens = StagingRing::kSlotBytes / TokenBytesOf(card, stored_); token < last;) {
    const int64_t n = std::min(slot_tokens, last - token);
    const int64_t to_row = row + token - begin;
    int64_t offsets[5] = {0};
    for (int i = 0; i < 4; ++i) offsets[i + 1] = offsets[i] + heads * n * row_bytes[i];
    const auto fill = [&](char* slot) {
      for (int64_t head = 0; head < heads; ++head) {
        const auto place = [&](int i) { return slot + offsets[i] + head * n * row_bytes[i]; };
        const auto h = static_cast<size_t>(head);
        CopyToSlot(*keys->heads[h], stored_, card.key_dim, token - first_token, n, place(0), place(2));
        CopyToSlot(*values->heads[h], stored_, card.value_dim, token - first_token, n, place(1), place(3));
      }
    };
    const auto queue = [&](const char* slot) -> absl::Status {
      for (int i = 0; i < 4; ++i) {
        if (row_bytes[i] == 0) continue;
        char* const target = static_cast<char*>(const_cast<void*>(targets[i])) + to_row * row_bytes[i];
        MNEME_RETURN_IF_ERROR(DeviceStatus(device_->runtime().Copy(
            {slot + offsets[i], n * row_bytes[i], target, block.capacity * row_bytes[i], n * row_bytes[i], heads},
            stream_->get())));
      }
      return absl::OkStatus();
    };
    MNEME_RETURN_IF_ERROR(device_->staging().Copy(offsets[4], stream_->get(), fill, queue));
    token += n;
  }
  return absl::OkStatus();
}

absl::Status MemoryMirror::Upload(const MemoryState& state, size_t layer, int64_t begin, int64_t end, int64_t row) {
  for (const SegmentView& view : state.sealed) {
    MNEME_RETURN_IF_ERROR(UploadFrom(*view.segment, view.first_token, view.end(), layer, begin, end, row));
  }
  MNEME_RETURN_IF_ERROR(UploadFrom(*state.tail, state.tail_first, end, layer, begin, end, row));
  device_->counters().copied_rows += end - begin;
  return absl::OkStatus();
}

absl::StatusOr<bool> MemoryMirror::CopyUpTo(const Snapshot& snapshot, size_t layer, int64_t end) {
  Layer& own = layers_[layer];
  const MemoryState& state = *snapshot.state;
  const int64_t kept = std::max(state.first_kept, pinned_);
  if (own.block != nullptr && kept < own.complete_from) return false;
  const auto overwrites_held_rows = [&] { return own.rows < RowOf(*own.block, end) && own.rows < own.HeldRows(); };
  if (own.block == nullptr || RowOf(*own.block, end) > own.block->rows.capacity || overwrites_held_rows()) {
    MNEME_ASSIGN_OR_RETURN(const bool replaced, ReplaceBlock(layer, kept, end));
    if (!replaced) return false;
  }
  if (own.rows >= RowOf(*own.block, end)) return true;
  MNEME_RETURN_IF_ERROR(AddRows(state, layer, kept, end));
  if (own.ready == nullptr) MNEME_RETURN_IF_ERROR(DeviceStatus(device_->runtime().NewEvent(&own.ready)));
  MNEME_RETURN_IF_ERROR(DeviceStatus(device_->runtime().Record(own.ready, stream_->get())));
  return true;
}

absl::Status MemoryMirror::AddRows(const MemoryState& state, size_t layer, int64_t kept, int64_t end) {
  Layer& own = layers_[layer];
  if (own.rows < pinned_) {
    const int64_t pinned_end = std::min(pinned_, end);
    MNEME_RETURN_IF_ERROR(Upload(state, layer, own.rows, pinned_end, own.rows));
    own.rows = pinned_end;
  }
  if (end <= pinned_) return absl::OkStatus();
  int64_t token = own.block->first + own.rows - pinned_;
  if (token < kept) {
    // These tokens were evicted before they were copied. Their rows stay hidden.
    own.complete_from = kept;
    token = std::min(kept, end);
  }
  if (token < end) MNEME_RETURN_IF_ERROR(Upload(state, layer, token, end, RowOf(*own.block, token)));
  own.rows = RowOf(*own.block, end);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<MemoryMirror::View>> MemoryMirror::Acquire(const Snapshot& snapshot, size_t layer,
                                                                        int64_t begin, int64_t end, void* stream) {
  Layer& own = layers_[layer];
  if (snapshot.state->epoch != epoch_ || !Supports(cards_[layer], stored_)) return std::nullopt;
  const absl::StatusOr<bool> complete = CopyUpTo(snapshot, layer, snapshot.layer_ends[layer]);
  if (!complete.ok()) {
    own.Drop();
    return complete.status();
  }
  if (!*complete) return std::nullopt;
  if (own.ready != nullptr) MNEME_RETURN_IF_ERROR(DeviceStatus(device_->runtime().Wait(stream, own.ready)));
  View view;
  view.rows = own.block->rows;
  view.pinned = pinned_;
  view.gap = own.block->first - pinned_;
  view.rows.pinned = pinned_;
  view.rows.kept = RowOf(*own.block, std::max(snapshot.state->first_kept, pinned_));
  view.rows.end = RowOf(*own.block, end);
  view.rows.begin = RowOf(*own.block, begin);
  // Evicted rows between the pinned and the kept ones are hidden in any case, so the kernels need not read them.
  if (view.rows.begin >= pinned_) view.rows.begin = std::max(view.rows.begin, view.rows.kept);
  view.rows.begin = std::min(view.rows.begin, view.rows.end);
  return view;
}

absl::Status MemoryMirror::ReleaseAfter(void* event) {
  return DeviceStatus(device_->runtime().Wait(stream_->get(), event));
}

void MemoryMirror::Hold(size_t layer, const View& view, std::shared_ptr<RowHold>& hold) {
  Layer& own = layers_[layer];
  if (hold == nullptr || hold->block != own.block) {
    hold = std::make_shared<RowHold>();
    hold->block = own.block;
    std::erase_if(own.holds, [](const auto& other) { return other.expired(); });
    own.holds.push_back(hold);
  }
  hold->rows = view.rows.end;
}

void MemoryMirror::CopyNewRows(const Snapshot& snapshot, size_t layer) {
  MutexLock lock(&mutex_);
  Layer& own = layers_[layer];
  if (own.block == nullptr || snapshot.state->epoch != epoch_) return;
  // Copies now would need a new block. A later call copies the rows, perhaps after the hold has ended.
  if (own.rows < own.HeldRows()) return;
  const absl::StatusOr<bool> complete = CopyUpTo(snapshot, layer, snapshot.layer_ends[layer]);
  if (complete.ok()) return;
  own.Drop();
  device_->LogFailure(complete.status());
}

void MemoryMirror::Truncate(int64_t tokens, uint64_t epoch) {
  MutexLock lock(&mutex_);
  epoch_ = epoch;
  for (Layer& layer : layers_) {
    if (layer.block == nullptr) continue;
    if (tokens < layer.complete_from) {
      layer.Drop();
    } else {
      layer.rows = std::min(layer.rows, RowOf(*layer.block, tokens));
    }
  }
}

void MemoryMirror::Clear() {
  for (Layer& layer : layers_) layer.Drop();
}

}  // namespace mneme
