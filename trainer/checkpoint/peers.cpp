#include "trainer/checkpoint/peers.h"

#include <algorithm>

#include "parallel/communicator.h"

namespace sluice {

int CommunicatorPeers::rank() const { return group_->rank(); }
int CommunicatorPeers::size() const { return group_->size(); }

std::vector<std::string> CommunicatorPeers::all_gather(std::string_view bytes) {
  const int num_ranks = size();
  int64_t mine = int64_t(bytes.size());
  std::vector<int64_t> lengths(num_ranks);
  group_->all_gather(TensorView(&mine, {1}), TensorView(lengths.data(), {num_ranks})).wait();

  // Equal slices, each as long as the longest.
  const int64_t slot = std::max<int64_t>(1, *std::max_element(lengths.begin(), lengths.end()));
  std::string padded(bytes);
  padded.resize(slot);
  std::string whole(slot * num_ranks, '\0');
  group_
      ->all_gather(TensorView(reinterpret_cast<uint8_t*>(padded.data()), {slot}),
                   TensorView(reinterpret_cast<uint8_t*>(whole.data()), {slot * num_ranks}))
      .wait();
  std::vector<std::string> all;
  for (int rank = 0; rank < num_ranks; ++rank)
    all.push_back(whole.substr(slot * rank, lengths[rank]));
  return all;
}

// An outcome travels as its code's byte and its text.
std::vector<Outcome> gather_outcomes(CheckpointPeers& peers, const Outcome& mine) {
  std::vector<Outcome> outcomes;
  for (const std::string& bytes : peers.all_gather(char(mine.code) + mine.text)) {
    SLUICE_CHECK(!bytes.empty(), "an outcome without its code");
    outcomes.push_back({ExitCode(uint8_t(bytes[0])), bytes.substr(1)});
  }
  return outcomes;
}

const Outcome* first_failure(const std::vector<Outcome>& outcomes) {
  const auto found = std::find_if(outcomes.begin(), outcomes.end(),
                                  [](const Outcome& outcome) { return !outcome.ok(); });
  return found == outcomes.end() ? nullptr : &*found;
}

}  // namespace sluice
