#include "plan/plan_writer.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/ceil_div.h"
#include "calibatt/counted.h"
#include "plan/plan_heads.h"
#include "plan/plan_json.h"

namespace calibatt {
namespace {

constexpr size_t kLengthBytes = 8;        // of the header, in front of it
constexpr size_t kHeaderAlignment = 64;   // of the data behind it
constexpr size_t kSectionsAlignment = 8;  // of the tensors behind the sections
// The header stands first but is known last; room is left for the longest that it can become.
constexpr size_t kNumTensors = 12, kTensorHeaderBytes = 192;

/// The safetensors header, and the order of the tensors behind it: sections first, since they are written first; then
/// the widest numbers, so that all are aligned.
std::string header_text(const PlanFile& index, std::vector<std::string>& order) {
  for (const auto& [name, tensor] : index.tensors) order.push_back(name);
  std::stable_sort(order.begin(), order.end(), [&](const std::string& a, const std::string& b) {
    const auto rank = [&](const std::string& name) {
      return name == "sections" ? size_t{0} : 9 - dtype_size(index.tensors.at(name).dtype());
    };
    return rank(a) < rank(b);
  });
  nlohmann::ordered_json header;
  header["__metadata__"] = index.metadata;
  size_t offset = 0;
  for (const std::string& name : order) {
    const Tensor& tensor = index.tensors.at(name);
    header[name] = {{"dtype", dtype_name(tensor.dtype())},
                    {"shape", tensor.shape()},
                    {"data_offsets", {offset, offset + tensor.size_bytes()}}};
    offset += tensor.size_bytes();
  }
  return header.dump();
}

PlanInfo validated(PlanInfo info) {
  info.validate();
  return info;
}

}  // namespace

PlanWriter::PlanWriter(PlanInfo info, const std::string& path) : info_(validated(std::move(info))), file_(path) {
  const AttentionGeometry& geometry = info_.geometry;
  num_entries_ = info_.num_entries();
  if (info_.anchor_rows_per_frame > 0) {
    num_anchor_tokens_ = static_cast<int>(make_anchor_rows(geometry, info_.anchor_rows_per_frame).query_tokens.size());
    num_packed_blocks_ = ceil_div(num_anchor_tokens_, geometry.block_q);
  }
  diagonal_shift_ = static_cast<int>(std::lround(static_cast<double>(geometry.block_q) / geometry.block_k));
  last_entry_.resize(static_cast<size_t>(info_.num_layers));

  std::vector<std::string> no_tensors;
  header_bytes_ =
      kLengthBytes + header_text(PlanFile{{}, metadata()}, no_tensors).size() + kNumTensors * kTensorHeaderBytes;
  header_bytes_ = (header_bytes_ + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment;
  file_.write(std::string(header_bytes_, ' '));
}

std::map<std::string, std::string> PlanWriter::metadata() const {
  return {{"checksum", std::string(32, '0')},
          {"format", kPlanFormatName},
          {"format_version", std::to_string(kPlanFormatVersion)},
          {"plan", plan_json(info_)}};
}

HeadFacts PlanWriter::facts_of(const HeadPlan& head) const {
  const AttentionGeometry& geometry = info_.geometry;
  const int num_queries = head.anchored ? num_anchor_tokens_ : geometry.num_tokens();
  const auto refused = [this](const std::string& what) {
    return Error(ErrorKind::kFormat, "plan: " + head_text(info_, facts_.size()) + " " + what);
  };
  if (num_queries == 0) throw refused("is anchored, but the plan has no anchor rows");
  HeadFacts facts;
  facts.anchored = head.anchored;
  facts.token_pairs = int64_t{num_queries} * geometry.num_tokens();
  if (!head.intervals) return facts;
  const int num_rows = ceil_div(num_queries, geometry.block_q);
  if (head.intervals->num_query_blocks() != num_rows || head.intervals->num_key_blocks() != geometry.num_key_blocks()) {
    throw refused("has " + std::to_string(head.intervals->num_query_blocks()) + "×" +
                  counted(head.intervals->num_key_blocks(), "blocks") + ", but the geometry makes it " +
                  std::to_string(num_rows) + "×" + std::to_string(geometry.num_key_blocks()));
  }
  facts.has_intervals = true;
  facts.num_intervals = static_cast<uint32_t>(head.intervals->intervals().size());
  facts.token_pairs =
      kept_token_pairs(*head.intervals, num_queries, geometry.block_q, geometry.num_tokens(), geometry.block_k);
  return facts;
}

void PlanWriter::add_layer(std::span<const HeadPlan> heads) {
  const auto num_heads = static_cast<size_t>(info_.geometry.heads);
  CALIBATT_ASSERT(heads.size() == num_heads);
  const size_t site = section_ends_.size();
  CALIBATT_ASSERT(site < static_cast<size_t>(num_entries_) * static_cast<size_t>(info_.num_layers));
  for (const HeadPlan& head : heads) facts_.push_back(facts_of(head));
  const std::span<const HeadFacts> facts(facts_.data() + site * num_heads, num_heads);

  Site now;
  now.shape = section_shape(facts, info_.geometry, num_packed_blocks_);
  if (now.shape.size_bytes() > kMaxSectionBytes) {
    throw Error(ErrorKind::kFormat, "plan: the masks of one layer have " + counted(now.shape.size_bytes(), "bytes") +
                                        ", at most " + std::to_string(kMaxSectionBytes) +
                                        " can be stored; use larger blocks");
  }
  now.bits = bits_of_layer(heads, now.shape);
  Site& last = last_entry_[site % static_cast<size_t>(info_.num_layers)];
  const bool is_key = site / static_cast<size_t>(info_.num_layers) % kKeyEntryInterval == 0;
  const PreviousBits previous = is_key ? PreviousBits{} : PreviousBits{&last.bits, &last.shape};
  const std::string stored = compress_section(now.bits, now.shape, previous, diagonal_shift_);
  last = std::move(now);

  file_.write(stored);
  num_section_bytes_ += stored.size();
  section_ends_.push_back(static_cast<int64_t>(num_section_bytes_));
  const SectionChecksum checksum =
      section_checksum({reinterpret_cast<const unsigned char*>(stored.data()), stored.size()});
  section_checksums_.insert(section_checksums_.end(), checksum.begin(), checksum.end());
}

void PlanWriter::finish() {
  const size_t num_sites = static_cast<size_t>(num_entries_) * static_cast<size_t>(info_.num_layers);
  CALIBATT_ASSERT(section_ends_.size() == num_sites);
  if (std::none_of(facts_.begin(), facts_.end(), [](const HeadFacts& head) { return head.anchored; })) {
    info_.anchor_rows_per_frame = 0;
  }
  const auto padded = (num_section_bytes_ + kSectionsAlignment - 1) / kSectionsAlignment * kSectionsAlignment;
  file_.write(std::string(padded - num_section_bytes_, '\0'));

  PlanFile index;
  const std::vector<int64_t> sites{num_entries_, info_.num_layers};
  const std::vector<int64_t> per_head{num_entries_, info_.num_layers, info_.geometry.heads};
  put_common_tensors(info_, index.tensors);
  put_head_kinds(info_, facts_, index.tensors);
  Tensor token_pairs(DType::kI64, per_head), section_end(DType::kI64, sites);
  std::vector<uint32_t> num_intervals;
  for (size_t i = 0; i < facts_.size(); ++i) {
    token_pairs.data<int64_t>()[i] = facts_[i].token_pairs;
    num_intervals.push_back(facts_[i].num_intervals);
  }
  std::copy(section_ends_.begin(), section_ends_.end(), section_end.data<int64_t>());
  Tensor checksums(DType::kU8, {sites[0], sites[1], static_cast<int64_t>(sizeof(SectionChecksum))});
  std::copy(section_checksums_.begin(), section_checksums_.end(), checksums.data<uint8_t>());
  index.tensors["token_pairs"] = token_pairs;
  index.tensors["section_end"] = section_end;
  index.tensors["num_intervals"] = narrowed(num_intervals, per_head);
  index.tensors["section_checksum"] = checksums;
  // They are in the file already; their size is all that the header and the index's checksum want.
  index.tensors["sections"] = Tensor(DType::kU8, {static_cast<int64_t>(padded)}, std::make_shared<char>());

  index.metadata = metadata();
  index.metadata["checksum"] = plan_checksum(index);
  std::vector<std::string> order;
  const std::string header = header_text(index, order);
  CALIBATT_ASSERT(index.tensors.size() <= kNumTensors && kLengthBytes + header.size() <= header_bytes_);
  for (const std::string& name : order) {
    const Tensor& tensor = index.tensors[name];
    if (name != "sections") file_.write(tensor.raw(), tensor.size_bytes());
  }
  const uint64_t length = header_bytes_ - kLengthBytes;
  file_.write_at(0, &length, kLengthBytes);
  file_.write_at(kLengthBytes, header.data(), header.size());
  file_.commit();
}

}  // namespace calibatt
