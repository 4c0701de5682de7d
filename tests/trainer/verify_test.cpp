#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "parallel/self_communicator.h"
#include "tests/support/tiny_run.h"
#include "trainer/verify/reduced_config.h"
#include "trainer/verify/synthetic_rows.h"
#include "trainer/verify/verification.h"

namespace sluice::test {
namespace {

Config config_of(const std::string& name) {
  return load_config(std::string(SLUICE_SOURCE_DIR) + "/configs/" + name + ".yaml").config;
}

std::string letters(const Config& config) { return stack_letters(config.model.stack.branches); }

TEST(ReducedConfig, KeepsEveryDistinctBranchTwice) {
  EXPECT_EQ(letters(reduce_config(config_of("hybrid-130m"), 8)), "M*M*");
  EXPECT_EQ(letters(reduce_config(config_of("jamba-mini"), 8)), "S-E*S-E*");
  EXPECT_EQ(letters(reduce_config(config_of("mamba2-1.3b"), 8)), "MM");
  // Equal kinds that differ in a key are two.
  TinyRun tiny("MM*");
  tiny.config.model.stack.branches = resolve_stack(tiny.config.model);
  tiny.config.model.stack.pattern.clear();
  std::get<Mamba2Config>(tiny.config.model.stack.branches[1].config).conv_width = 2;
  EXPECT_EQ(letters(reduce_config(tiny.config, 2)), "MM*MM*");
}

TEST(ReducedConfig, KeepsWhatHeadsAndExpertsDivideBy) {
  const auto attention = [](const char* name) {
    for (const BranchConfig& branch : reduce_config(config_of(name), 8).model.stack.branches) {
      if (const auto* config = std::get_if<AttentionConfig>(&branch.config)) return *config;
    }
    throw UsageError("no attention");
  };
  EXPECT_EQ(attention("hybrid-130m").heads, 12);
  EXPECT_EQ(attention("hybrid-130m").kv_heads, 4);
  EXPECT_EQ(attention("jamba-mini").heads, 16);
  EXPECT_EQ(attention("jamba-mini").kv_heads, 4);
  const Config jamba = reduce_config(config_of("jamba-mini"), 8);
  EXPECT_EQ(std::get<MoeConfig>(jamba.model.stack.branches[2].config).experts, 8);
  for (const int world : {1, 2, 3, 6, 8, 64}) {
    const Config reduced = reduce_config(config_of("jamba-mini"), world);
    for (const MeshShape& shape : possible_meshes(world)) {
      const int64_t batches = reduced.train.global_batch / reduced.train.micro_batch;
      EXPECT_EQ(batches % shape.dp, 0) << to_string(shape);
      EXPECT_GE(reduced.train.seq_len, shape.cp);
    }
    EXPECT_EQ(reduced.train.seq_len % 2, 1);
  }
}

// Otherwise a layout that training takes would be skipped.
TEST(ReducedConfig, ExpertsDealOutOverTheSameRanks) {
  TinyRun tiny("E");
  for (const int world : {2, 8, 12, 32}) {
    for (const int64_t experts : {1, 3, 8, 11, 15, 16, 22, 48, 64, 160}) {
      std::get<MoeConfig>(tiny.config.model.sections).experts = experts;
      std::get<MoeConfig>(tiny.config.model.sections).top_k = 1;
      const Config config = reduce_config(tiny.config, world);
      const auto& reduced = std::get<MoeConfig>(config.model.stack.branches[0].config);
      EXPECT_LE(reduced.experts, experts);
      EXPECT_GE(reduced.experts, std::min<int64_t>(experts, 4));
      for (int64_t ep = 1; ep <= world; ++ep)
        EXPECT_EQ(reduced.experts % ep == 0, experts % ep == 0) << experts << " over " << ep;
    }
  }
}

TEST(SyntheticRows, AreTheSameWhoeverCutsThem) {
  const SyntheticRows rows{.seed = 5, .row_tokens = 37, .vocab_size = 41};
  const Batch whole = rows.batch(1, 0, 8, {});
  int64_t targets = 0;
  for (int64_t shard = 0; shard < 4; ++shard) {
    const Batch part = rows.batch(1, 3, 2, {.rank = shard, .size = 4});
    targets += part.num_targets();
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t t = 0; t < part.rows().tokens; ++t) {
        const int64_t at = (3 + b) * 37 + part.rows().begin + t;
        ASSERT_EQ(part.tokens().as<int32_t>()[b * part.rows().tokens + t],
                  whole.tokens().as<int32_t>()[at]);
      }
    }
  }
  EXPECT_EQ(targets, rows.batch(1, 3, 2, {}).num_targets());
  EXPECT_EQ(rows.count_targets(1, 8), whole.num_targets());
}

TEST(SyntheticRows, HoldDocumentsOfAllKinds) {
  const SyntheticRows rows{.seed = 5, .row_tokens = 37, .vocab_size = 41};
  std::set<int64_t> starts_at_cuts, lengths;
  bool whole_row = false;
  for (int64_t r = 0; r < 16; ++r) {
    const Batch::Row row = rows.row(0, r);
    whole_row |= row.doc_begin.back() == 0;
    for (int64_t t = 0; t < 37; ++t) {
      const bool last = t == 36 || row.doc_begin[t + 1] != row.doc_begin[t];
      ASSERT_EQ(row.targets[t], last ? -1 : row.tokens[t + 1]);
      if (last) lengths.insert(t + 1 - row.doc_begin[t]);
      for (const int64_t cut : sequence_cuts(37, 4)) {
        if (row.doc_begin[t] == cut && cut > 0) starts_at_cuts.insert(cut);
      }
    }
  }
  EXPECT_TRUE(whole_row);
  EXPECT_EQ(starts_at_cuts.size(), 3);
  EXPECT_TRUE(lengths.contains(1));
  EXPECT_GT(lengths.size(), 8);
}

LayoutTrace trace_with(double loss, double weight) {
  LayoutTrace trace;
  trace.losses = {loss};
  trace.auxiliary = {0};
  trace.grad_norms = {1};
  trace.gradients = {{"a", {3, 4}}, {"tiny", {weight * 1e-9}}};
  trace.parameters = {{"a", {1, weight}}};
  return trace;
}

TEST(Verification, MeasuresTheLargestRelativeDifference) {
  const auto differences = compare_traces(trace_with(2, 1), trace_with(4, 2), 1e-10);
  ASSERT_EQ(differences.size(), 4);
  EXPECT_EQ(differences[0].quantity, "loss");
  EXPECT_DOUBLE_EQ(differences[0].error, 0.5);
  EXPECT_EQ(differences[1].quantity, "gradients");
  EXPECT_EQ(differences[1].where, "tiny");
  EXPECT_NEAR(differences[1].error, 1e-9 / 5e-6, 1e-9);  // the floor: 1e-6 of all gradients
  EXPECT_EQ(differences[2].where, "a");
  EXPECT_NEAR(differences[2].error, 1 / std::sqrt(5.0), 1e-12);
  for (const Difference& difference : compare_traces(trace_with(4, 2), trace_with(4, 2), 0))
    EXPECT_TRUE(difference.holds()) << difference.quantity;
}

TEST(Verification, WhatIsNotANumberDoesNotHold) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto differences = compare_traces(trace_with(nan, nan), trace_with(4, 2), 1e-10);
  for (size_t i = 0; i < 3; ++i) EXPECT_FALSE(differences[i].holds()) << differences[i].quantity;
}

TEST(GradientCheck, KeepsWhatIsNotANumber) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  KindCheck kind{.kind = "mlp", .parameter = {}};
  kind.add("down.weight", 0);
  EXPECT_EQ(kind.parameter, "down.weight");
  kind.add("up.weight", nan);
  kind.add("up.bias", 3e-9);
  EXPECT_TRUE(std::isnan(kind.error));
  EXPECT_EQ(kind.parameter, "up.weight");
  EXPECT_EQ(kind.parameters, 3);
}

TEST(Verification, IsShownWithWhatDiffersMostAndWhatFails) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  LayoutCheck check{.mesh = {.dp = 4, .ep = 2, .cp = 1},
                    .zero = 2,
                    .skipped = {},
                    .differences = {{"loss", -nan, 1e-10, "loss of step 2"},
                                    {"gradients", 3e-4, 1e-10, "branches.1.mlp.up.weight"},
                                    {"parameters", 2e-11, 1e-10, "final_norm.weight"},
                                    {"replicas", 1, 0, ""},
                                    {"choices", 0, 0, "of 40"}}};
  EXPECT_EQ(describe_layout(check),
            "dp 4 ep 2 cp 1      2     f64      nan       3.0e-04    2.0e-11     equal    differ   "
            "branches.1.mlp.up.weight\n"
            "    FAILED: loss nan (at most 1e-10) loss of step 2\n"
            "    FAILED: gradients 0.0003 (at most 1e-10) branches.1.mlp.up.weight\n"
            "    FAILED: replicas 1 (at most 0e+00) \n");
  const Verification verification{
      .stack = "E-",
      .gradient_tolerance = 1e-6,
      .kinds = {{"moe", "branches.0.router.weight", -nan, 7}, {"mlp", "up.weight", 2e-9, 3}},
      .layouts = {check}};
  EXPECT_FALSE(verification.holds());
  EXPECT_EQ(describe_kinds(verification),
            "reduced model E-: gradients against finite differences, f64\n"
            "kind           parameters  error    largest in\n"
            "moe                     7  nan      branches.0.router.weight  FAILED\n"
            "mlp                     3  2.0e-09  up.weight\n");
  const nlohmann::json json = to_json(verification);
  EXPECT_EQ(json["holds"], false);
  const nlohmann::json& layout = json["layouts"][0];
  EXPECT_EQ(layout["mesh"], (nlohmann::json{{"dp", 4}, {"ep", 2}, {"cp", 1}}));
  EXPECT_EQ(layout["zero"], 2);
  EXPECT_EQ(layout["dtype"], "f64");
  EXPECT_EQ(layout["holds"], false);
  EXPECT_EQ(layout["quantities"]["loss"]["error"], "nan");
  EXPECT_EQ(layout["quantities"]["gradients"]["error"], 3e-4);
  EXPECT_EQ(layout["quantities"]["gradients"]["where"], "branches.1.mlp.up.weight");
  EXPECT_EQ(layout["quantities"]["gradients"]["holds"], false);
  EXPECT_EQ(layout["quantities"]["parameters"]["holds"], true);
}

TEST(Verification, HoldsForATinyModelOnTwoRanks) {
  TinyRun tiny("ME*-S");
  World world{.comm = make_self_communicator()};
  int reported = 0;
  const Verification verification =
      verify(tiny.config, world, {.thread_worlds = {1, 2}, .report = [&](const LayoutCheck& check) {
                                    ++reported;
                                    EXPECT_TRUE(check.holds()) << describe_layout(check);
                                  }});
  EXPECT_TRUE(verification.holds()) << describe_kinds(verification);
  EXPECT_EQ(reported, int(verification.layouts.size()));
  std::set<std::string> kinds;
  for (const KindCheck& kind : verification.kinds) kinds.insert(kind.kind);
  EXPECT_EQ(kinds, (std::set<std::string>{"embedding", "norm", "mamba2", "moe", "attention", "mlp",
                                          "mamba", "final_norm"}));
  std::set<std::string> layouts;
  for (const LayoutCheck& check : verification.layouts) layouts.insert(to_string(check.mesh));
  EXPECT_EQ(layouts, (std::set<std::string>{"dp 1 x ep 1 x cp 1", "dp 2 x ep 1 x cp 1",
                                            "dp 2 x ep 2 x cp 1", "dp 1 x ep 1 x cp 2"}));
  EXPECT_TRUE(to_json(verification).at("holds").get<bool>());
}

TEST(Verification, HoldsWhereRowsGoOnFromStepToStep) {
  TinyRun tiny("MS");
  tiny.config.data.carry_state = true;
  const Config reduced = reduce_config(tiny.config, 2);
  EXPECT_EQ(synthetic_rows(reduced).row(2, 0).doc_begin.back(), -2 * reduced.train.seq_len);
  EXPECT_EQ(synthetic_rows(reduced).row(2, 1).doc_begin.front(), 0);
  const auto losses = [](Config config, bool carries) {
    config.data.carry_state = carries;
    const auto self = make_self_communicator();
    return trace_layout(*self, {}, {.config = config}).losses;
  };
  const std::vector<double> carried = losses(reduced, true), cut = losses(reduced, false);
  EXPECT_EQ(carried[0], cut[0]);
  EXPECT_NE(carried[1], cut[1]);
  World world{.comm = make_self_communicator()};
  const Verification verification = verify(tiny.config, world, {.thread_worlds = {2}});
  for (const LayoutCheck& check : verification.layouts)
    EXPECT_TRUE(check.holds()) << describe_layout(check);
}

TEST(Verification, SaysWhatItSkips) {
  TinyRun tiny("M");
  World world{.comm = make_self_communicator()};
  const Verification verification = verify(tiny.config, world, {.thread_worlds = {2}});
  int skipped = 0;
  for (const LayoutCheck& check : verification.layouts) {
    if (check.skipped.empty()) continue;
    ++skipped;
    EXPECT_EQ(check.mesh, (MeshShape{.dp = 2, .ep = 2, .cp = 1}));
    EXPECT_NE(describe_layout(check).find("no experts"), std::string::npos);
  }
  EXPECT_EQ(skipped, 1);
}

}  // namespace
}  // namespace sluice::test
