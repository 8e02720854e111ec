#include "backend/cuda/attention/packed_schedule.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <string>

#include "backend/validate_attention.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr size_t kAlignment = 16;  // of Tile, the widest element
constexpr uint32_t kBitsPerWord = 32;
constexpr size_t kWideTilesOfSample = 32;  // one of so many says what wide tiles share: all would take 80 ms at 720p

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorKind::kUsage, "attention: " + message);
}

/// ⌈a / b⌉, in 32 bits.
uint32_t parts_of(uint32_t a, uint32_t b) {
  return a / b + (a % b != 0);
}

/// The size of an array as the 32-bit index of its next element.
template <class T>
uint32_t next_index(const std::vector<T>& array, const char* what) {
  if (array.size() >= std::numeric_limits<uint32_t>::max()) {
    refuse("the schedule of this call has too many " + std::string(what) +
           " for 32-bit indices; split it into calls of fewer heads");
  }
  return static_cast<uint32_t>(array.size());
}

class Packer {
 public:
  Packer(int num_queries, int num_keys, int block_q, int block_k)
      : num_queries_(static_cast<uint32_t>(num_queries)),
        num_chunks_(parts_of(static_cast<uint32_t>(num_keys), kChunkKeys)),
        block_q_(static_cast<uint32_t>(block_q)),
        block_k_(static_cast<uint32_t>(block_k)) {}

  /// Room for these heads: growing arrays of megabytes costs more than filling them.
  void reserve(std::span<const HeadSchedule> heads) {
    size_t num_ranges = 1, num_tiles = 0;
    for (const HeadSchedule& head : heads) {
      const uint32_t tiles_per_block = parts_of(block_q_, kTileRows);
      if (head.intervals != nullptr) {
        num_ranges += head.intervals->intervals().size();
        num_tiles += static_cast<size_t>(head.intervals->num_query_blocks()) * tiles_per_block;
      } else {
        num_tiles += parts_of(num_queries_, kTileRows);
      }
    }
    packed_.ranges.reserve(num_ranges);
    packed_.tiles.reserve(num_tiles);
    packed_.wide_tiles.reserve(num_tiles);
  }

  void add_head(uint32_t head, const HeadSchedule& schedule) {
    const size_t first_tile = packed_.tiles.size();
    Tile tile{.head = head};
    uint32_t first_row = 0, num_rows = num_queries_;
    if (schedule.anchors != nullptr) {
      first_row = place_anchors(*schedule.anchors);
      num_rows = static_cast<uint32_t>(schedule.anchors->query_tokens.size());
      tile.flags |= Tile::kAnchors;
    }
    if (schedule.intervals == nullptr) {
      tile.first_range = place_all_keys();
      tile.num_ranges = 1;
      tile.num_chunks = num_chunks_;
      add_tiles(tile, first_row, num_rows);
    } else {
      add_planned_tiles(tile, schedule, first_row, num_rows);
    }
    // Longest first inside the head: the last tiles to finish are then short.
    std::stable_sort(packed_.tiles.begin() + static_cast<ptrdiff_t>(first_tile), packed_.tiles.end(),
                     [](const Tile& a, const Tile& b) { return a.num_chunks > b.num_chunks; });
    add_wide_tiles(first_tile);
  }

  PackedSchedule finish() {
    if (!packed_.kept_bits.empty()) packed_.kept_bits.insert(packed_.kept_bits.end(), kChunkKeys / kBitsPerWord, ~0u);
    if (!packed_.anchor_tokens.empty()) {
      packed_.destination_offsets.push_back(next_index(packed_.destinations, "anchor destinations"));
    }
    next_index(packed_.tiles, "tiles");
    next_index(packed_.kept_bits, "words of kept blocks");
    return std::move(packed_);
  }

 private:
  void add_planned_tiles(Tile tile, const HeadSchedule& schedule, uint32_t first_row, uint32_t num_rows) {
    const BlockIntervals& intervals = *schedule.intervals;
    const uint32_t first_range = place_intervals(intervals);
    const auto num_key_blocks = static_cast<uint32_t>(intervals.num_key_blocks());
    const uint32_t first_word = schedule.summarize_skipped ? place_kept_bits(intervals) : 0;
    const uint32_t flags = tile.flags;
    for (uint32_t r = 0; r < static_cast<uint32_t>(intervals.num_query_blocks()); ++r) {
      const auto row = intervals.row(static_cast<int>(r));
      tile.first_range = first_range + intervals.offsets()[r];
      tile.num_ranges = static_cast<uint32_t>(row.size());
      tile.num_chunks = 0;
      for (uint32_t i = 0; i < tile.num_ranges; ++i) {
        const ChunkRange range = packed_.ranges[tile.first_range + i];
        tile.num_chunks += range.end - range.begin;
      }
      const bool skips = row.size() > 1 || row[0].begin > 0 || row[0].end < num_key_blocks;
      const bool summaries = schedule.summarize_skipped && skips;
      tile.flags = flags | (summaries ? Tile::kSummaries : 0);
      tile.kept_bits = summaries ? first_word + r * parts_of(num_key_blocks, kBitsPerWord) : 0;
      const uint32_t begin = r * block_q_;
      add_tiles(tile, first_row + begin, std::min(block_q_, num_rows - begin));
    }
  }

  /// Rows [first_row, first_row + num_rows) that see the keys of `tile`.
  void add_tiles(Tile tile, uint32_t first_row, uint32_t num_rows) {
    for (uint32_t begin = 0; begin < num_rows; begin += kTileRows) {
      tile.first_row = first_row + begin;
      tile.num_rows = std::min<uint32_t>(kTileRows, num_rows - begin);
      packed_.tiles.push_back(tile);
    }
  }

  /// Of the tiles from `first_tile` on, a head's: halves in the order of rows, three by three; the longest first.
  void add_wide_tiles(size_t first_tile) {
    std::vector<uint32_t> by_row(packed_.tiles.size() - first_tile);
    std::iota(by_row.begin(), by_row.end(), static_cast<uint32_t>(first_tile));
    std::ranges::sort(by_row, {}, [&](uint32_t tile) { return packed_.tiles[tile].first_row; });
    const auto first_wide = static_cast<ptrdiff_t>(packed_.wide_tiles.size());
    int used = WideTile::kHalves;
    for (const uint32_t tile : by_row) {
      for (uint32_t row = 0, half = 2 * tile; row < packed_.tiles[tile].num_rows; row += WideTile::kHalfRows, ++half) {
        if (used == WideTile::kHalves) {
          packed_.wide_tiles.emplace_back();
          used = 0;
        }
        packed_.wide_tiles.back().halves[used++] = half;
      }
    }
    for (auto i = static_cast<size_t>(first_wide); i < packed_.wide_tiles.size(); i += kWideTilesOfSample) {
      count_chunks(packed_.wide_tiles[i]);
    }
    const auto longest = [&](const WideTile& wide) {
      uint32_t length = 0;
      for (const uint32_t half : wide.halves) {
        if (half != WideTile::kNone) length = std::max(length, packed_.tiles[half / 2].num_chunks);
      }
      return length;
    };
    std::stable_sort(packed_.wide_tiles.begin() + first_wide, packed_.wide_tiles.end(),
                     [&](const WideTile& a, const WideTile& b) { return longest(a) > longest(b); });
  }

  void count_chunks(const WideTile& wide) {
    std::array<std::span<const ChunkRange>, WideTile::kHalves> left;
    for (int i = 0; i < WideTile::kHalves && wide.halves[i] != WideTile::kNone; ++i) {
      const Tile& tile = packed_.tiles[wide.halves[i] / 2];
      packed_.half_chunks += tile.num_chunks;
      const bool same = i > 0 && wide.halves[i] / 2 == wide.halves[i - 1] / 2;
      if (!same) left[static_cast<size_t>(i)] = std::span(packed_.ranges).subspan(tile.first_range, tile.num_ranges);
    }
    // Ranges by their begin, whichever tile's: what lies behind those before is new.
    uint32_t count = 0, reached = 0;
    while (true) {
      std::span<const ChunkRange>* next = nullptr;
      for (auto& ranges : left) {
        if (!ranges.empty() && (next == nullptr || ranges[0].begin < (*next)[0].begin)) next = &ranges;
      }
      if (next == nullptr) break;
      const ChunkRange range = (*next)[0];
      if (range.end > reached) count += range.end - std::max(range.begin, reached);
      reached = std::max(reached, range.end);
      *next = next->subspan(1);
    }
    packed_.wide_chunks += count;
  }

  uint32_t place_all_keys() {
    if (!has_all_keys_) {
      all_keys_ = next_index(packed_.ranges, "intervals");
      has_all_keys_ = true;
      packed_.ranges.push_back({0, num_chunks_});
    }
    return all_keys_;
  }

  /// One range per interval, in the same order, so that the CSR offsets of the intervals serve the ranges too.
  uint32_t place_intervals(const BlockIntervals& intervals) {
    const auto [place, is_new] = ranges_of_.try_emplace(&intervals, next_index(packed_.ranges, "intervals"));
    if (!is_new) return place->second;
    const uint64_t chunks_per_block = block_k_ / kChunkKeys;
    packed_.ranges.resize(packed_.ranges.size() + intervals.intervals().size());
    ChunkRange* range = packed_.ranges.data() + place->second;
    for (const BlockInterval& interval : intervals.intervals()) {
      // Only the end of the last block can lie behind the last chunk.
      *range++ = {static_cast<uint32_t>(interval.begin * chunks_per_block),
                  static_cast<uint32_t>(std::min<uint64_t>(interval.end * chunks_per_block, num_chunks_))};
    }
    next_index(packed_.ranges, "intervals");
    return place->second;
  }

  uint32_t place_kept_bits(const BlockIntervals& intervals) {
    const auto [place, is_new] =
        bits_of_.try_emplace(&intervals, next_index(packed_.kept_bits, "words of kept blocks"));
    if (!is_new) return place->second;
    const auto num_key_blocks = static_cast<uint32_t>(intervals.num_key_blocks());
    std::vector<uint32_t> words(parts_of(num_key_blocks, kBitsPerWord));
    for (int r = 0; r < intervals.num_query_blocks(); ++r) {
      std::ranges::fill(words, 0u);
      if (num_key_blocks % kBitsPerWord != 0) words.back() = ~0u << (num_key_blocks % kBitsPerWord);
      for (const BlockInterval& interval : intervals.row(r)) {
        const uint32_t first = interval.begin / kBitsPerWord, last = (interval.end - 1) / kBitsPerWord;
        const uint32_t from = ~0u << (interval.begin % kBitsPerWord);
        const uint32_t to = ~0u >> (kBitsPerWord - 1 - (interval.end - 1) % kBitsPerWord);
        if (first == last) {
          words[first] |= from & to;
          continue;
        }
        words[first] |= from;
        for (uint32_t word = first + 1; word < last; ++word) words[word] = ~0u;
        words[last] |= to;
      }
      packed_.kept_bits.insert(packed_.kept_bits.end(), words.begin(), words.end());
    }
    return place->second;
  }

  /// The first anchor's number. Anchors of several heads lie behind each other, their destinations too.
  uint32_t place_anchors(const AnchorRows& anchors) {
    const auto [place, is_new] = anchors_of_.try_emplace(&anchors, next_index(packed_.anchor_tokens, "anchors"));
    if (!is_new) return place->second;
    packed_.anchor_tokens.insert(packed_.anchor_tokens.end(), anchors.query_tokens.begin(), anchors.query_tokens.end());
    next_index(packed_.anchor_tokens, "anchors");
    // Counting sort of the tokens by their source; tokens of one source rise.
    std::vector<uint32_t> next(anchors.query_tokens.size() + 1);
    for (const int32_t source : anchors.source_of) ++next[static_cast<size_t>(source) + 1];
    for (size_t i = 1; i < next.size(); ++i) next[i] += next[i - 1];
    const uint32_t base = next_index(packed_.destinations, "anchor destinations");
    for (size_t i = 0; i + 1 < next.size(); ++i) packed_.destination_offsets.push_back(base + next[i]);
    packed_.destinations.resize(packed_.destinations.size() + anchors.source_of.size());
    next_index(packed_.destinations, "anchor destinations");
    for (size_t token = 0; token < anchors.source_of.size(); ++token) {
      packed_.destinations[base + next[static_cast<size_t>(anchors.source_of[token])]++] = static_cast<int32_t>(token);
    }
    return place->second;
  }

  uint32_t num_queries_, num_chunks_, block_q_, block_k_;
  PackedSchedule packed_;
  std::map<const BlockIntervals*, uint32_t> ranges_of_, bits_of_;  ///< first index of what several heads share
  std::map<const AnchorRows*, uint32_t> anchors_of_;
  uint32_t all_keys_ = 0;  ///< the range of dense heads
  bool has_all_keys_ = false;
};

/// Visits the arrays in the order of the image: visit(array, pointer of the DeviceSchedule, offset in bytes).
template <class Visit>
size_t for_each_array(const PackedSchedule& packed, DeviceSchedule& device, Visit visit) {
  size_t offset = 0;
  const auto place = [&](const auto& array, auto& pointer) {
    visit(array, pointer, offset);
    const size_t size = array.size() * sizeof(array[0]);
    offset += (size + kAlignment - 1) / kAlignment * kAlignment;
  };
  place(packed.tiles, device.tiles);
  place(packed.wide_tiles, device.wide_tiles);
  place(packed.ranges, device.ranges);
  place(packed.kept_bits, device.kept_bits);
  place(packed.anchor_tokens, device.anchor_tokens);
  place(packed.destination_offsets, device.destination_offsets);
  place(packed.destinations, device.destinations);
  return offset;
}

}  // namespace

size_t PackedSchedule::size_bytes() const {
  DeviceSchedule unused;
  return for_each_array(*this, unused, [](const auto&, auto&, size_t) {});
}

void PackedSchedule::write_image(std::span<std::byte> image) const {
  CALIBATT_ASSERT(image.size() == size_bytes());
  DeviceSchedule unused;
  std::ranges::fill(image, std::byte{0});
  for_each_array(*this, unused, [&](const auto& array, auto&, size_t offset) {
    if (!array.empty()) std::memcpy(image.data() + offset, array.data(), array.size() * sizeof(array[0]));
  });
}

DeviceSchedule PackedSchedule::at(const void* base) const {
  DeviceSchedule device;
  device.num_tiles = static_cast<uint32_t>(tiles.size());
  device.num_wide_tiles = static_cast<uint32_t>(wide_tiles.size());
  device.sharing = static_cast<float>(half_chunks / wide_chunks);
  for_each_array(*this, device, [&]<class T>(const std::vector<T>& array, const T*& pointer, size_t offset) {
    if (!array.empty()) pointer = reinterpret_cast<const T*>(static_cast<const std::byte*>(base) + offset);
  });
  return device;
}

bool needs_schedule(std::span<const HeadSchedule> heads) {
  return std::ranges::any_of(
      heads, [](const HeadSchedule& head) { return head.intervals != nullptr || head.anchors != nullptr; });
}

PackedSchedule pack_schedule(std::span<const HeadSchedule> heads, int num_queries, int num_keys, int block_q,
                             int block_k) {
  if (num_queries < 1 || num_keys < 1 || block_q < 1 || block_k < 1) {
    refuse("a schedule needs at least one query, one key and blocks of at least one token, not " +
           std::to_string(num_queries) + ", " + std::to_string(num_keys) + " and " + std::to_string(block_q) + " x " +
           std::to_string(block_k));
  }
  Packer packer(num_queries, num_keys, block_q, block_k);
  packer.reserve(heads);
  for (size_t head = 0; head < heads.size(); ++head) {
    validate_head_schedule(heads[head], static_cast<int>(head), num_queries, num_keys, block_q, block_k);
    if (heads[head].intervals != nullptr && block_k % kChunkKeys != 0) {
      refuse("head " + std::to_string(head) + ": key blocks of " + std::to_string(block_k) +
             " tokens; on CUDA, a plan's key blocks are multiples of " + std::to_string(kChunkKeys) + " tokens");
    }
    packer.add_head(static_cast<uint32_t>(head), heads[head]);
  }
  return packer.finish();
}

}  // namespace calibatt::cuda
