#include "trainer/commands/commands.h"

namespace sluice {

std::vector<Command> commands() {
  return {
      make_command("train", "trains, or goes on from the newest good checkpoint", run_train),
      make_command("plan", "parameters, FLOPs, memory and bytes on the wire; allocates nothing",
                   run_plan),
      make_command("verify", "gradients, and every layout of the ranks present against one rank",
                   run_verify),
      make_command("score", "loss, logits and gradients of given rows of tokens", run_score),
      make_command("eval", "held-out loss of a model", run_eval),
      make_command("generate", "samples text from a model", run_generate),
      make_command("import", "makes a checkpoint of a Hugging Face folder", run_import),
      make_command("data build", "makes a token store from text and jsonl", run_data_build),
      make_command("data inspect", "shows and verifies a token store", run_data_inspect),
      make_command("config print", "prints every key with its origin", run_config_print),
      make_command("config schema", "prints the JSON Schema of configurations", run_config_schema),
  };
}

}  // namespace sluice
