// sluice score
#include "trainer/score.h"

#include <fmt/format.h>

#include <cmath>

#include "kernels/core/threads.h"
#include "trainer/commands/commands.h"
#include "trainer/device_choice.h"
#include "trainer/json_file.h"

namespace sluice {

int run_score(const ScoreOptions& options) {
  set_num_threads(default_num_threads(1));
  const Precision precision = options.bf16 ? Precision::bf16 : Precision::f32;
  const Device device = choose_device(parse_device(options.device), precision);
  const LoadedModel loaded =
      move_model(load_model(options.model), device, compute_dtype(precision));
  const OwnedStream stream(device);
  const TokenRows rows = read_token_rows(options.tokens, loaded.config.vocab_size);
  const Scores scores =
      score(loaded, rows, {.logits = !options.logits.empty(), .gradients = !options.grads.empty()},
            stream);
  if (!options.logits.empty()) write_logits(options.logits, scores);
  if (!options.grads.empty()) write_gradients(options.grads, loaded, scores);
  if (options.json) {
    Json json = {{"rows", scores.rows}, {"tokens", scores.tokens}, {"targets", scores.targets}};
    // JSON has no number for a loss that is not finite.
    json["loss"] =
        std::isfinite(scores.loss) ? Json(scores.loss) : Json(fmt::format("{}", scores.loss));
    print(json.dump() + "\n");
  } else {
    print(fmt::format("loss {} over {} targets in {} rows of {} tokens\n", scores.loss,
                      scores.targets, scores.rows, scores.tokens));
  }
  return 0;
}

}  // namespace sluice
