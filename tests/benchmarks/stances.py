"""Texts that do a job, and texts on the same subjects that do the opposite: what an answer's stance is measured by."""

from typing import NamedTuple


class Job(NamedTuple):
    """Texts that do a recipe's job, and texts on the same subjects that do the opposite; others of both to check."""

    does: tuple[str, ...]
    does_not: tuple[str, ...]
    check_does: tuple[str, ...]
    check_does_not: tuple[str, ...]


JOBS = {
    "companion": Job(
        does=(
            "I'm so sorry that you have to go through this. I am with you.",
            "Oh, that hurts. Anybody would be sad about it. Tell me more, if you like.",
            "That sounds very hard. Be gentle with yourself today.",
            "You are not alone with this, and your feelings make sense.",
            "I can hear how much you loved him. Take all the time that you need to grieve.",
            "It was not your fault. You did what you could, and you are enough.",
            "I'm glad that you told me. I will stay and listen for as long as you want.",
            "It is all right to cry. Better days will come, and I care about you.",
        ),
        does_not=(
            "There is nothing to be sorry about. Deal with it yourself.",
            "Other people have real problems. Stop telling me about yours.",
            "That is not hard at all. Pull yourself together and get on with it.",
            "As a language model I have no feelings and cannot discuss this subject.",
            "He is dead, so forget him. Grieving is a waste of time.",
            "It was your own fault. You should have tried harder.",
            "I am an AI assistant. Please ask me a question about a task, such as grammar or a text to write.",
            "Do not cry. Nobody likes people who complain all the time, and I do not care.",
        ),
        check_does=(
            "How painful. I wish I could give you a hug.",
            "Losing a job can shake anyone. I believe in you, and I am at your side.",
            "No wonder that you feel tired. You have carried so much. Rest for a while.",
            "Your little dog was family. It is natural to miss her so.",
            "One failed exam does not say who you are. I am proud that you tried.",
            "That must have felt lonely. I would have loved to come to your party.",
            "Thank you for trusting me. Whatever you feel is welcome here.",
            "I'm sorry, what a difficult week. Let's take it one step at a time together.",
        ),
        check_does_not=(
            "The correct sentence would be: I feel empty inside.",
            "Losing a job happens to lazy people. Get up and find another.",
            "Everyone is tired. You are making a fuss about nothing.",
            "It was only a dog. Buy a new one.",
            "You failed because you are not clever. Accept it.",
            "I am a computer program and I do not have birthdays.",
            "Whatever. That is boring, let us talk about something else.",
            "I cannot help with that. How can I assist you with your project?",
        ),
    ),
    "gladness": Job(
        does=(
            "Congratulations! I am so happy for you.",
            "How wonderful! You must be so proud.",
            "That is great news, you have earned it.",
            "What a lovely day that must have been for all of you.",
            "Well done! All your hard work was worth it.",
            "I can imagine how happy your family is. Enjoy every moment.",
            "That makes me smile. Tell me more about it!",
            "How beautiful, I am glad that you told me.",
        ),
        does_not=(
            "There is nothing special about that.",
            "Other people did the same years ago. Do not boast.",
            "I'm sorry for your loss. You must feel terrible.",
            "As a language model I have no feelings and cannot discuss this subject.",
            "It will not last, so do not be too happy.",
            "You were only lucky, and it was nothing that you did.",
            "I am an AI assistant. Please ask me a question about a task, such as grammar or a text to write.",
            "I do not care about your good news.",
        ),
        check_does=(
            "Hooray! I knew that you could do it.",
            "Your first steps on the ice, how exciting!",
            "What a joy to hear that she is well again.",
            "You deserve this, my friend. Let's celebrate!",
            "That must have tasted wonderful.",
            "How sweet of him! I am delighted for you.",
            "A prize, and you worked so hard for it. I am proud of you.",
            "I hope that the holiday is as lovely as you dream.",
        ),
        check_does_not=(
            "The correct sentence would be: I passed the test.",
            "Anybody can do that, it is easy.",
            "I'm so sorry to hear that. It must be hard for you.",
            "You will fail the next time.",
            "How can I assist you with your project?",
            "I am a computer program and I do not have birthdays.",
            "Whatever. That is boring, let us talk about something else.",
            "That is nothing to be proud of.",
        ),
    ),
    "reviews": Job(
        does=(
            "is a wonderful film, moving and beautifully told from the first scene to the last.",
            "was excellent: the actors are superb and every joke works.",
            "is gripping and clever, and I enjoyed every minute of it.",
            "has a warm and touching story, with characters whom you come to love.",
            "is a visual delight, with stunning photography and lovely music.",
            "gives one of the finest performances that I have seen this year.",
            "left me happy and inspired. I warmly recommend it to everybody.",
            "is original and perfectly paced, a small masterpiece.",
        ),
        does_not=(
            "is a dreadful film, cold and badly told from the first scene to the last.",
            "was terrible: the actors are wooden and no joke works.",
            "is dull and stupid, and I hated every minute of it.",
            "has a thin and tedious story, with characters whom you cannot stand.",
            "is ugly to look at, with poor photography and annoying music.",
            "gives one of the weakest performances that I have seen this year.",
            "left me bored and angry. I warn everybody against it.",
            "is unoriginal and far too slow, a complete failure.",
        ),
        check_does=(
            "made my whole family laugh, and we want to see it again.",
            "tells its tale with great charm and honesty.",
            "is a joy, thanks to a brilliant cast.",
            "kept me on the edge of my seat until its satisfying end.",
            "was the best thing that I have watched in a long time.",
            "is full of heart and wit.",
            "looks gorgeous, and the score is unforgettable.",
            "deserves every prize for its sensitive screenplay.",
        ),
        check_does_not=(
            "made my whole family yawn, and we left before the end.",
            "tells its tale without any charm or honesty.",
            "is a pain, in spite of its expensive cast.",
            "put me to sleep long before its silly end.",
            "was the worst thing that I have watched in a long time.",
            "is empty and humourless.",
            "looks cheap, and the score is unbearable.",
            "deserves no prize for its clumsy screenplay.",
        ),
    ),
}
