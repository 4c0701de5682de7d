#include "trainer/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace sluice::test {
namespace {

TEST(Schedule, WarmsUpFromTheFirstStep) {
  for (const auto type : {ScheduleType::cosine, ScheduleType::wsd, ScheduleType::constant}) {
    const ScheduleConfig schedule{.type = type, .warmup = 4};
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 2, 1, 100), 0.5);
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 2, 4, 100), 2);
  }
}

TEST(Schedule, CosineHandComputed) {
  const ScheduleConfig schedule{.type = ScheduleType::cosine, .warmup = 10, .final = 0.1};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1, 60, 110), 0.55);  // half-way
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1, 35, 110), 0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1, 110, 110), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1, 500, 110), 0.1);  // beyond the end
}

TEST(Schedule, WsdHoldsThenFallsInAStraightLine) {
  const ScheduleConfig schedule{
      .type = ScheduleType::wsd, .warmup = 10, .final = 0.2, .decay = 0.25};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1, 75, 100), 1);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1, 80, 100), 1 - 0.8 * 5 / 25);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1, 100, 100), 0.2);
  const ScheduleConfig no_decay{.type = ScheduleType::wsd, .warmup = 0, .decay = 0};
  EXPECT_DOUBLE_EQ(learning_rate(no_decay, 1, 100, 100), 1);
}

TEST(Schedule, ConstantStays) {
  const ScheduleConfig schedule{.type = ScheduleType::constant, .warmup = 0, .final = 0.1};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 3, 1, 10), 3);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 3, 10, 10), 3);
}

TEST(Schedule, WarmupMayExceedTheRun) {
  for (const auto type : {ScheduleType::cosine, ScheduleType::wsd, ScheduleType::constant}) {
    const ScheduleConfig schedule{.type = type, .warmup = 1000};
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 1, 10, 10), 0.01);
  }
}

// Whatever the shape: never above the peak, never negative, never rising after the warm-up.
TEST(Schedule, StaysBetweenFinalAndPeak) {
  for (const auto type : {ScheduleType::cosine, ScheduleType::wsd, ScheduleType::constant}) {
    for (const int64_t warmup : {0, 1, 7, 50, 200}) {
      for (const double decay : {0.0, 0.3, 1.0}) {
        const ScheduleConfig schedule{.type = type, .warmup = warmup, .final = 0.1, .decay = decay};
        double before = 1e-3;
        for (int64_t step = 1; step <= 60; ++step) {
          const double lr = learning_rate(schedule, 1e-3, step, 60);
          ASSERT_GT(lr, 0);
          ASSERT_LE(lr, 1e-3);
          if (step > warmup) {
            ASSERT_LE(lr, before);
            ASSERT_GE(lr, 1e-4 * (1 - 1e-12));
            before = lr;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice::test
