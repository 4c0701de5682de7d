#include "trainer/progress.h"

#include <gtest/gtest.h>

#include <cmath>

namespace sluice::test {
namespace {

StepMetrics at_step(int64_t step) {
  return {.step = step,
          .loss = 2.34512,
          .grad_norm = 0.8123,
          .lr = 5.9e-4,
          .tokens_per_s = 12345,
          .step_s = 2,
          .data_wait_s = 0.006};
}

// What Progress writes for three steps of ten.
std::string written(TerminalStyle style, int64_t every, bool note) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* stream = ::open_memstream(&text, &size);
  {
    Progress progress(stream, style, 10, every);
    progress.show(at_step(1));
    if (note) progress.note("checkpoint step-00000001");
    progress.show(at_step(2));
    progress.show(at_step(3));
  }
  std::fclose(stream);
  std::string out(text, size);
  ::free(text);
  return out;
}

TEST(Progress, Line) {
  EXPECT_EQ(progress_line(at_step(120), 1000, 192),
            "step 120/1000  loss 2.3451  grad 0.812  lr 5.90e-04  12.3k tok/s  wait 0.3%  left "
            "3m12s");
  StepMetrics metrics = at_step(1);
  metrics.mfu = 0.412;
  metrics.more = {{"valid_loss", 3}};
  metrics.skipped = true;
  EXPECT_EQ(progress_line(metrics, 9, 1),
            "step 1/9  loss 2.3451  grad 0.812  lr 5.90e-04  12.3k tok/s  mfu 41.2%  wait 0.3%  "
            "left 1s  valid_loss 3.0000  skipped: not finite");
}

TEST(Progress, ScoresStandBehindWhatTheyScore) {
  EXPECT_EQ(progress_line(at_step(120), 1000, 192, {.loss = 0.44, .grad_norm = -11.26}),
            "step 120/1000  loss 2.3451 (+0.4z)  grad 0.812 (-11.3z)  lr 5.90e-04  12.3k tok/s  "
            "wait 0.3%  left 3m12s");
}

TEST(ZScore, CountsDeviationsFromTheValuesBefore) {
  ZScore score;
  for (int i = 0; i < 16; ++i) EXPECT_FALSE(score.add(i % 2 == 0 ? 1 : 3)) << i;
  EXPECT_DOUBLE_EQ(score.add(5).value(), 3);  // mean 2, deviation 1
  EXPECT_FALSE(score.add(std::nan("")));
  // Neither the 5 nor the NaN is among the last 128 any more.
  for (int i = 0; i < 128; ++i) score.add(i % 2 == 0 ? 1 : 3);
  EXPECT_DOUBLE_EQ(score.add(0).value(), -2);
  ZScore constant;
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(constant.add(7));
}

TEST(Progress, ShortForms) {
  EXPECT_EQ(short_count(950), "950");
  EXPECT_EQ(short_count(12345), "12.3k");
  EXPECT_EQ(short_count(999999), "1M");
  EXPECT_EQ(short_count(4.56e9), "4.56G");
  EXPECT_EQ(short_count(7e15), "7e+03T");
  EXPECT_EQ(short_duration(59.4), "59s");
  EXPECT_EQ(short_duration(192), "3m12s");
  EXPECT_EQ(short_duration(18420), "5h07m");
  EXPECT_EQ(short_duration(187200), "2d04h");
  EXPECT_EQ(short_duration(std::nan("")), "?");
}

TEST(Progress, PlainLinesWithoutATerminal) {
  const std::string every = written({}, 1, false);
  EXPECT_EQ(every, progress_line(at_step(1), 10, 18) + "\n" + progress_line(at_step(2), 10, 16) +
                       "\n" + progress_line(at_step(3), 10, 14) + "\n");
  const std::string second = written({}, 2, true);
  EXPECT_EQ(second, progress_line(at_step(1), 10, 18) + "\ncheckpoint step-00000001\n" +
                        progress_line(at_step(2), 10, 16) + "\n");
}

TEST(Progress, RewritesOneLineOnATerminal) {
  const std::string plain = written({.rewrite = true, .color = false}, 1, true);
  EXPECT_EQ(plain.find('\x1b'), std::string::npos);
  const std::string colored = written({.rewrite = true, .color = true}, 1, false);
  EXPECT_NE(colored.find("\x1b[1mstep 1/10\x1b[0m  loss"), std::string::npos);
  // Only the last step and the note end in a new line.
  EXPECT_EQ(std::count(plain.begin(), plain.end(), '\n'), 2);
  EXPECT_EQ(std::count(colored.begin(), colored.end(), '\n'), 1);
  EXPECT_NE(plain.find("checkpoint step-00000001\n"), std::string::npos);
}

TEST(Progress, AStreamThatIsNoTerminalHasNoStyle) {
  std::FILE* file = std::tmpfile();
  const TerminalStyle style = style_of(file);
  std::fclose(file);
  EXPECT_FALSE(style.rewrite);
  EXPECT_FALSE(style.color);
}

}  // namespace
}  // namespace sluice::test
