//! Between an ALOHA robot and the robots that the base model was trained on (openpi `aloha_policy.py`,
//! `adapt_to_pi`): signs of joints and positions of grippers.

use serde::Deserialize;

/// Gripper joint positions of the base model, normalised from encoder counts 2405 to 3110, in radians.
const PI_CLOSED: f64 = 0.5476;
const PI_OPEN: f64 = 1.6296;

/// `PUPPET_GRIPPER_POSITION_*` of ALOHA's code, in metres; openpi calls the smaller one "open".
const LINEAR_LOW: f64 = 0.01844;
const LINEAR_HIGH: f64 = 0.058;

/// `PUPPET_GRIPPER_JOINT_*` of ALOHA's code, in radians.
const JOINT_LOW: f64 = -0.6213;
const JOINT_HIGH: f64 = 1.491;

/// Interbotix gripper linkage, in metres.
const ARM: f64 = 0.036;
const HORN: f64 = 0.022;

/// How a robot's state and actions differ from the base model's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PiSpace {
    /// 1 or -1 for each dimension of state and actions.
    pub flip: Vec<f64>,
    /// Dimensions that hold a gripper.
    pub grippers: Vec<usize>,
}

impl PiSpace {
    /// A robot state as the base model knows it (`_decode_state`).
    pub(super) fn state_in(&self, state: &mut [f64]) {
        self.convert(state, gripper_to_angular);
    }

    /// An action of the base model as the robot takes it (`_encode_actions`).
    pub(super) fn action_out(&self, action: &mut [f64]) {
        self.convert(action, gripper_from_angular);
    }

    /// An action of the robot as the base model gives it (`_encode_actions_inv`).
    pub(super) fn action_in(&self, action: &mut [f64]) {
        self.convert(action, gripper_from_angular_inverse);
    }

    fn convert(&self, values: &mut [f64], gripper: impl Fn(f64) -> f64) {
        for (dim, (value, flip)) in values.iter_mut().zip(&self.flip).enumerate() {
            *value *= flip;
            if self.grippers.contains(&dim) {
                *value = gripper(*value);
            }
        }
    }
}

/// ALOHA's linear gripper position in [0, 1] as the base model's angle in [0, 1].
fn gripper_to_angular(value: f64) -> f64 {
    let linear = value * (LINEAR_HIGH - LINEAR_LOW) + LINEAR_LOW;
    let sine = (HORN.powi(2) + linear.powi(2) - ARM.powi(2)) / (2.0 * HORN * linear);
    (sine.clamp(-1.0, 1.0).asin() - PI_CLOSED) / (PI_OPEN - PI_CLOSED)
}

/// The base model's gripper action as ALOHA's joint position in [0, 1]; openpi does not scale it by the range.
fn gripper_from_angular(value: f64) -> f64 {
    (value + PI_CLOSED - JOINT_LOW) / (JOINT_HIGH - JOINT_LOW)
}

fn gripper_from_angular_inverse(value: f64) -> f64 {
    value * (JOINT_HIGH - JOINT_LOW) + JOINT_LOW - PI_CLOSED
}
