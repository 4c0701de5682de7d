// B rows, T tokens on this rank, k choices of a token
#include "layers/routing_tape.h"

#include <algorithm>

namespace sluice {

void RoutingTape::write(int64_t branch, const Rows& rows, const ConstTensorView& experts) {
  const auto [B, T, k] = experts.shape<3>("experts: (B, T, k)");
  SLUICE_CHECK(B == rows.rows && T == rows.tokens && rows.begin + T <= rows.row_tokens,
               "choices of ", to_string(experts.dims), " for ", rows.rows, " rows of ", rows.tokens,
               " tokens from ", rows.begin, " of ", rows.row_tokens);
  const std::lock_guard lock(mutex_);
  for (int64_t b = 0; b < B; ++b) {
    Row& row = rows_[{branch, rows.first_row + b}];
    row.k = k;
    row.experts.resize(rows.row_tokens * k, -1);
    for (int64_t t = 0; t < T; ++t) {
      std::copy_n(experts.row<int32_t>(b * T + t), k, row.experts.begin() + (rows.begin + t) * k);
    }
  }
}

void RoutingTape::read(int64_t branch, const Rows& rows, const TensorView& experts) const {
  const auto [B, T, k] = experts.shape<3>("experts: (B, T, k)");
  const std::lock_guard lock(mutex_);
  for (int64_t b = 0; b < B; ++b) {
    const auto found = rows_.find({branch, rows.first_row + b});
    SLUICE_CHECK(found != rows_.end() && found->second.k == k &&
                     int64_t(found->second.experts.size()) == rows.row_tokens * k,
                 "the routing tape has no row ", rows.first_row + b, " of ", rows.row_tokens,
                 " tokens with ", k, " choices in branch ", branch);
    for (int64_t t = 0; t < T; ++t) {
      const int32_t* const chosen = &found->second.experts[(rows.begin + t) * k];
      SLUICE_CHECK(std::count(chosen, chosen + k, -1) == 0, "the routing tape has no token ",
                   rows.begin + t, " of row ", rows.first_row + b, " in branch ", branch);
      std::copy_n(chosen, k, experts.row<int32_t>(b * T + t));
    }
  }
}

RoutingTape::Comparison RoutingTape::compare(const RoutingTape& tape, const RoutingTape& other) {
  SLUICE_CHECK(tape.rows_.size() == other.rows_.size(), "comparing routing of ", tape.rows_.size(),
               " rows with that of ", other.rows_.size());
  Comparison result;
  for (const auto& [key, row] : tape.rows_) {
    const auto found = other.rows_.find(key);
    SLUICE_CHECK(found != other.rows_.end() && found->second.k == row.k &&
                     found->second.experts.size() == row.experts.size(),
                 "comparing routing: row ", key.second, " of branch ", key.first,
                 " is not the same on both tapes");
    for (size_t i = 0; i < row.experts.size(); ++i) {
      const size_t token = i / row.k;
      const auto theirs = found->second.experts.begin() + token * row.k;
      SLUICE_CHECK((row.experts[i] < 0) == (theirs[i % row.k] < 0), "comparing routing: token ",
                   token, " of row ", key.second, " is on one tape only");
      if (row.experts[i] < 0) continue;
      ++result.choices;
      if (std::count(theirs, theirs + row.k, row.experts[i]) > 0) continue;
      if (result.flipped++ == 0) {
        result.first = concat("branch ", key.first, ", row ", key.second, ", token ", token);
      }
    }
  }
  return result;
}

}  // namespace sluice
